"""``python -m ivideogpt.data tokenize``: run a tokenizer over every clip of a dataset, into a token store.

Started by ``accelerate launch -m`` or ``torchrun -m``, several processes share the shards. What is in a shard does not
depend on who writes it, so an interrupted run goes on where it stopped, with any number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ivideogpt.data.clips.batches import BadEpisode
from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import watch_workers
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import STRONG_AUGMENTATION, Augmentation
from ivideogpt.data.tokens.stored_clips import (
    Carried,
    EpisodeLengths,
    Portion,
    Portions,
    StoredClips,
    first_good,
    measure,
    plain_and_augmented,
)
from ivideogpt.data.tokens.token_store import CLIPS_PER_SHARD, TokenBatch, TokenStore, TokenStoreMeta, state_checksum
from ivideogpt.data.tokens.token_store_writer import TokenStoreWriter
from ivideogpt.devices import check_launcher
from ivideogpt.errors import UserError
from ivideogpt.flags import REQUIRED, option, parse
from ivideogpt.layout import TokenLayout
from ivideogpt.pretrained import load_tokenizer
from ivideogpt.training.common.args import BAD_EPISODE_HELP, CACHE_HELP
from ivideogpt.vq_model import CompressiveVQModel

logger = logging.getLogger(__name__)

CAUSES_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class TokenizeArgs:
    """Store every clip of a dataset as tokens."""

    pretrained_model_name_or_path: str = option(REQUIRED, "tokenizer folder or hub id")
    dataset_path: str | None = option(
        None, "folder that holds one folder of .npz episodes per dataset, or lerobot:<folder>[@<camera>][,<folder>...]"
    )
    oxe_data_mixes_type: str = option(
        "folder:*", "mix of datasets; its weights do not count: every clip is stored once a pass"
    )
    sthsth_root_path: str | None = option(None, "frame folders of Something-Something v2")
    segment_length: int = option(16, "frames of a clip", minimum=1)
    context_length: int | None = option(None, "context frames (default: the tokenizer's)", minimum=1)
    video_stepsize: int = option(1, "distance of frames, in units of 3 Hz frames of each dataset", minimum=1)
    stride: int = option(1, "native frames from the start of a clip to the next one's", minimum=1)
    split: str = option("train", "which episodes", choices=("train", "test"))
    num_passes: int = option(1, "how often every clip is stored: once as it is, then augmented", minimum=1)
    strong_aug: bool = option(False, "stronger augmentation in the later passes")
    seed: int = option(0, "of the augmentation", minimum=0)
    output: str = option(REQUIRED, "folder of the store; an unfinished one goes on")
    clips_per_shard: int = option(CLIPS_PER_SHARD, "an interruption loses the work on one shard", minimum=1)
    batch_size: int = option(16, "clips at a time", minimum=1)
    dataloader_num_workers: int = option(0, "data worker processes", minimum=0)
    on_bad_episode: str = option(
        "error", BAD_EPISODE_HELP.replace("draw another one", "leave it out"), choices=("error", "skip")
    )
    cache_mb: int = option(64, CACHE_HELP, minimum=0)
    mixed_precision: str = option("no", "tokens are those of float32", choices=("no", "bf16"), inert=True)
    device: str | None = option(None, "where the tokenizer runs (default: cuda if there is one, else cpu)")

    def validate(self) -> None:
        """The tokenizer's context, which the segment length has to exceed, is not known yet."""
        if self.num_passes > 1 and self.split == "test":
            raise UserError("--num_passes augments, which --split test never is: store it in one pass")
        if self.strong_aug and self.num_passes == 1:
            raise UserError("--strong_aug is for the passes after the first: it needs --num_passes of at least 2")

    @property
    def augmentation(self) -> Augmentation | None:
        """Of the passes after the first."""
        if self.num_passes == 1:
            return None
        return STRONG_AUGMENTATION if self.strong_aug else Augmentation()

    @property
    def augmentation_name(self) -> str:
        if self.num_passes == 1:
            return "none"
        return "strong" if self.strong_aug else "weak"


@dataclass(frozen=True)
class ClipTokenizer:
    """Frames in [0, 1] to flat token ids, on a device, in eval mode."""

    model: CompressiveVQModel
    device: torch.device

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        tokens, _ = self.model.tokenize(frames, self.model.context_length)
        return tokens.cpu()

    def batches(self, portion: Portion) -> Iterator[TokenBatch]:
        """A portion's clips as tokens; nothing if none could be read."""
        if portion.clips is not None:
            frames = portion.clips.to(self.device).frames
            yield TokenBatch(self(frames), portion.clips.actions, portion.clips.rewards)


def find_clips(args: TokenizeArgs, image_size: int, state: PartialState) -> StoredClips:
    """Opens every episode once; the processes share that."""
    config = DataConfig(
        dataset_path=args.dataset_path,
        mix=args.oxe_data_mixes_type,
        segment=SegmentSpec("contiguous", args.segment_length),
        video_stepsize=args.video_stepsize,
        image_size=image_size,
        batch_size=args.batch_size,
        augmentation=args.augmentation,
        sthsth_root_path=args.sthsth_root_path,
        on_bad_episode=args.on_bad_episode,  # type: ignore[arg-type]
        cache_mb=args.cache_mb,
    )
    plain, augmented = plain_and_augmented(config, args.split)
    firsts = [first_good(source) for source in plain]
    carried = Carried.by(firsts)
    if carried.action_dim is None and any(episode.action_dim for episode in firsts):
        logger.warning("the datasets differ in action dimension: no actions are stored")
    part = measure(plain, carried, args.on_bad_episode == "skip", state.process_index, state.num_processes)
    lengths = EpisodeLengths.joined(gather_object([part]))
    return StoredClips(config, plain, augmented, carried, lengths, args.stride, args.num_passes, args.seed)


def describe(args: TokenizeArgs, clips: StoredClips, layout: TokenLayout, tokenizer: str) -> TokenStoreMeta:
    return TokenStoreMeta(
        layout=layout,
        num_clips=len(clips),
        num_passes=args.num_passes,
        augmentation=args.augmentation_name,
        seed=args.seed,
        clips_per_shard=args.clips_per_shard,
        action_dim=clips.carried.action_dim,
        has_rewards=clips.carried.rewards,
        sources=clips.sources(),
        split=args.split,
        video_stepsize=args.video_stepsize,
        stride=args.stride,
        episodes=clips.checksum(),
        tokenizer=tokenizer,
        precision="no",
    )


def write_tokens(
    tokenizer: ClipTokenizer, portions: Portions, writer: TokenStoreWriter, num_workers: int = 0, show: bool = True
) -> None:
    """Write the shards that these portions make up."""
    batches: list[TokenBatch] = []
    skipped: list[BadEpisode] = []
    with tqdm(total=portions.num_clips, desc="clips", unit="clip", disable=not show) as progress:
        for portion in watch_workers(DataLoader(portions, batch_size=None, num_workers=num_workers)):
            if isinstance(portion, UserError):
                raise portion
            batches += tokenizer.batches(portion)
            skipped += portion.skipped
            if portion.is_last:
                writer.write(portion.shard, batches, skipped)
                batches, skipped = [], []
            progress.update(portion.num_clips)


def main(argv: Sequence[str]) -> None:
    args = parse(TokenizeArgs, argv)
    check_launcher()
    # Without being told, accelerate takes several processes on a machine without a GPU for strangers to one another.
    state = PartialState(cpu=args.device == "cpu" or not torch.cuda.is_available())
    device = choose_device(args.device, state)
    model = load_tokenizer(args.pretrained_model_name_or_path).to(device)
    if args.context_length is not None:
        model.set_context_length(args.context_length)
    layout = _layout(model, args.segment_length)
    clips = find_clips(args, model.config.resolution, state)
    writer = TokenStoreWriter(Path(args.output), describe(args, clips, layout, state_checksum(model.state_dict())))
    if state.is_main_process:
        writer.begin()
    state.wait_for_everyone()
    missing = writer.missing()
    state.wait_for_everyone()  # nobody writes before everyone has looked
    mine = [(shard, writer.meta.clips_of(shard)) for shard in missing[state.process_index :: state.num_processes]]
    tokenizer = ClipTokenizer(model, device)
    portions = Portions(clips, mine, args.batch_size)
    write_tokens(tokenizer, portions, writer, args.dataloader_num_workers, show=state.is_main_process)
    state.wait_for_everyone()
    if state.is_main_process:
        writer.finish()
        print(report(args.output, clips, writer.skipped()))


def choose_device(name: str | None, state: PartialState) -> torch.device:
    if state.num_processes > 1:
        return torch.device(state.device)
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def report(output: str, clips: StoredClips, skipped: Mapping[str, str]) -> str:
    causes = {**{bad.name: bad.cause for bad in clips.lengths.bad}, **skipped}
    lines = [f"{len(TokenStore(output))} clips of {len(clips.lengths.frames)} episodes in {output}"]
    if causes:
        lines.append(f"skipped {len(causes)} bad episodes")
        lines += [f"  {' '.join(cause.split())}" for cause in islice(causes.values(), CAUSES_LISTED)]
    return "\n".join(lines)


def _layout(model: CompressiveVQModel, segment_length: int) -> TokenLayout:
    if segment_length <= model.context_length:
        raise UserError(
            f"--segment_length {segment_length} has no future after {model.context_length} context frames; raise it"
        )
    return model.layout(segment_length - model.context_length)
