"""``python -m ivideogpt.data tokenize``: run a tokenizer over every clip of a dataset, into a token store.

Several processes, started by ``accelerate launch -m`` or ``torchrun -m``, share the shards. The content of a shard does
not depend on its process, so an interrupted run continues with any number of processes.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from ivideogpt.action_spaces import ActionSpaces
from ivideogpt.data.clips.batches import BadEpisode
from ivideogpt.data.clips.dataset import DataConfig, Source, build_sources
from ivideogpt.data.clips.loaders import start_method, watch_workers
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import STRONG_AUGMENTATION, Augmentation
from ivideogpt.data.formats.episodes import first_readable
from ivideogpt.data.tokens.stored_clips import Portions, StoredClips, joined, measure
from ivideogpt.data.tokens.token_store import TokenBatch, TokenStore, TokenStoreMeta, TokenStoreWriter, token_checksum
from ivideogpt.devices import check_launcher, several_without_gpu
from ivideogpt.errors import UserError
from ivideogpt.layout import TokenLayout
from ivideogpt.pretrained import load_tokenizer
from ivideogpt.training.transformer.tokenize_command import TokenizeArgs
from ivideogpt.vq_model import CompressiveVQModel

logger = logging.getLogger(__name__)

CAUSES_LISTED = 20


def find_clips(args: TokenizeArgs, image_size: int, state: PartialState) -> tuple[StoredClips, list[BadEpisode]]:
    """Find the clips by opening every episode once, distributed over the processes; also return bad episodes."""
    augmentation = STRONG_AUGMENTATION if args.strong_aug else Augmentation()
    spaces = None if args.action_spaces is None else ActionSpaces.read(args.action_spaces, args.action_adapters)
    config = DataConfig(
        dataset_path=args.dataset_path,
        mix=args.oxe_data_mixes_type,
        segment=SegmentSpec("contiguous", args.segment_length),
        video_stepsize=args.video_stepsize,
        image_size=image_size,
        batch_size=args.batch_size,
        augmentation=None if args.num_passes == 1 else augmentation,
        load_action=spaces is not None,
        action_spaces=spaces,
        sthsth_root_path=args.sthsth_root_path,
        on_bad_episode=args.on_bad_episode,  # type: ignore[arg-type]
        cache_mb=args.cache_mb,
    )
    split: Any = args.split
    sources = tuple(source for source, _ in build_sources(replace(config, augmentation=None), split))
    firsts = [first_readable(source.episodes.open, range(len(source.episodes))) for source in sources]
    dims = {episode.action_dim for episode in firsts} if spaces is None else {spaces.length}
    has_rewards = all(episode.has_rewards for episode in firsts)
    has_successes = all(episode.has_successes for episode in firsts)
    action_dim = dims.pop() if len(dims) == 1 else None
    if dims and any(dims):
        logger.warning("the datasets differ in action dimension: no actions are stored without --action_spaces")
    for what, stored in (("has_rewards", has_rewards), ("has_successes", has_successes)):
        if not stored and any(getattr(episode, what) for episode in firsts):
            logger.warning("only some of the datasets %s: none are stored", what.replace("_", " "))
    check = partial(
        Source.check,
        actions=action_dim is not None,
        rewards=has_rewards,
        action_dim=action_dim,
        successes=has_successes,
    )
    part = measure(sources, check, args.on_bad_episode == "skip", state.process_index, state.num_processes)
    lengths, contents, bad = joined(gather_object([part]))
    kinds = action_dim, has_rewards, has_successes
    clips = StoredClips(config, sources, *kinds, lengths, contents, args.stride, args.num_passes, args.seed)
    return clips, bad


def describe(args: TokenizeArgs, clips: StoredClips, layout: TokenLayout, tokenizer: str) -> TokenStoreMeta:
    return TokenStoreMeta(
        layout=layout,
        num_clips=len(clips),
        num_passes=args.num_passes,
        augmentation="none" if args.num_passes == 1 else "strong" if args.strong_aug else "weak",
        seed=args.seed,
        clips_per_shard=args.clips_per_shard,
        action_dim=clips.action_dim,
        action_spaces=clips.config.action_spaces,
        has_rewards=clips.has_rewards,
        has_successes=clips.has_successes,
        sources=clips.stored_sources(),
        split=args.split,
        video_stepsize=args.video_stepsize,
        stride=args.stride,
        episodes=clips.checksum(),
        tokenizer=tokenizer,
        precision="no",
    )


@torch.inference_mode()
def write_tokens(
    model: CompressiveVQModel, portions: Portions, writer: TokenStoreWriter, num_workers: int, show: bool
) -> None:
    """Tokenize these portions and write their shards."""
    batches: list[TokenBatch] = []
    skipped: list[BadEpisode] = []
    with tqdm(total=portions.num_clips, desc="clips", unit="clip", disable=not show) as progress:
        context = start_method(num_workers)
        loader = DataLoader(portions, batch_size=None, num_workers=num_workers, multiprocessing_context=context)
        for portion in watch_workers(loader):
            if isinstance(portion, UserError):
                raise portion
            if portion.clips is not None:  # None if no clip of it could be read
                series = portion.clips
                tokens, _ = model.tokenize(series.to(model.device).frames, model.context_length)
                batches.append(TokenBatch(tokens.cpu(), series.actions, series.rewards, series.successes))
            skipped += portion.skipped
            if portion.is_last:
                writer.write(portion.shard, batches, skipped)
                batches, skipped = [], []
            progress.update(portion.num_clips)


def tokenize(args: TokenizeArgs) -> None:
    check_launcher()
    state = PartialState(cpu=args.device == "cpu" or several_without_gpu())
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    device = device if state.num_processes == 1 else state.device
    model = load_tokenizer(args.pretrained_model_name_or_path).to(device, memory_format=torch.channels_last)
    if args.context_length is not None:
        model.set_context_length(args.context_length)
    if args.segment_length <= model.context_length:
        asked = f"--segment_length {args.segment_length}"
        raise UserError(f"{asked} has no future after {model.context_length} context frames; raise it")
    layout = model.layout(args.segment_length - model.context_length)
    clips, bad = find_clips(args, model.config.resolution, state)
    writer = TokenStoreWriter(Path(args.output), describe(args, clips, layout, token_checksum(model.state_dict())))
    if state.is_main_process:
        writer.begin()
    state.wait_for_everyone()
    missing = writer.missing()
    state.wait_for_everyone()  # no process writes before all have looked
    mine = [(shard, writer.meta.clips_of(shard)) for shard in missing[state.process_index :: state.num_processes]]
    portions = Portions(clips, mine, args.batch_size)
    write_tokens(model, portions, writer, args.dataloader_num_workers, show=state.is_main_process)
    state.wait_for_everyone()
    if state.is_main_process:
        writer.finish()
        print(f"{len(TokenStore(args.output))} clips of {len(clips.lengths)} episodes in {args.output}")
        if causes := {episode.name: episode.cause for episode in bad} | writer.skipped():
            listed = (f"  {' '.join(cause.split())}" for cause in islice(causes.values(), CAUSES_LISTED))
            print(f"skipped {len(causes)} bad episodes", *listed, sep="\n")
