"""``python -m ivideogpt.data tokenize``: run a tokenizer over every clip of a dataset once, into a token store.

Clips are all contiguous segments at every ``stride``-th start of every episode, in order, so an interrupted run goes on
where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ivideogpt.data.clips import ClipBatch, DataConfig, Source, build_sources
from ivideogpt.data.episodes import EpisodeReader, check_carries
from ivideogpt.data.segments import Indices, SegmentSpec, windows
from ivideogpt.data.token_store import TokenBatch, TokenStoreMeta, TokenStoreWriter, state_checksum
from ivideogpt.data.transforms import unit_range
from ivideogpt.errors import UserError
from ivideogpt.flags import REQUIRED, option, parse
from ivideogpt.layout import TokenLayout
from ivideogpt.pretrained import load_tokenizer
from ivideogpt.vq_model import CompressiveVQModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TokenizeArgs:
    """Store every clip of a dataset as tokens."""

    pretrained_model_name_or_path: str = option(REQUIRED, "tokenizer folder or hub id")
    dataset_path: str | None = option(None, "folder that holds one folder of .npz episodes per dataset")
    oxe_data_mixes_type: str = option(
        "folder:*", "mix of datasets; its weights do not count: every clip is stored once"
    )
    segment_length: int = option(16, "frames of a clip", minimum=1)
    context_length: int | None = option(None, "context frames (default: the tokenizer's)", minimum=1)
    video_stepsize: int = option(1, "distance of frames, in units of 3 Hz frames of each dataset", minimum=1)
    stride: int = option(1, "native frames from the start of a clip to the next one's", minimum=1)
    split: str = option("train", "which episodes", choices=("train", "test"))
    output: str = option(REQUIRED, "folder of the store; an unfinished one goes on")
    batch_size: int = option(16, "clips at a time", minimum=1)
    mixed_precision: str = option("no", "autocast precision", choices=("no", "bf16"))
    device: str | None = option(None, "where the tokenizer runs (default: cuda if there is one, else cpu)")

    def validate(self) -> None:
        """The tokenizer's context, which the segment length has to exceed, is not known yet."""


@dataclass(frozen=True)
class Clips:
    """All clips of a split, in order, with what every episode carries."""

    sources: tuple[Source, ...]
    length: int
    stride: int
    video_stepsize: int
    action_dim: int | None
    has_rewards: bool

    @classmethod
    def find(cls, config: DataConfig, split: str, stride: int) -> Clips:
        """Actions and rewards are stored if the first episode of every dataset has them (actions: of one dimension)."""
        sources = tuple(source for source, _ in build_sources(config, split))  # type: ignore[arg-type]
        firsts = [source.open(0) for source in sources]
        dims = {episode.action_dim for episode in firsts}
        if len(dims) > 1:
            logger.warning("the datasets differ in action dimension (%s): no actions are stored", dims)
        return cls(
            sources,
            config.segment.length,
            stride,
            config.video_stepsize,
            action_dim=dims.pop() if len(dims) == 1 else None,
            has_rewards=all(episode.has_rewards for episode in firsts),
        )

    def episodes(self) -> Iterator[tuple[Source, EpisodeReader]]:
        for source in self.sources:
            for i in range(len(source.files)):
                yield source, source.open(i)

    def __iter__(self) -> Iterator[tuple[Source, EpisodeReader, Indices]]:
        for source, episode in self.episodes():
            for indices in self.of(source, episode):
                yield source, episode, indices

    def of(self, source: Source, episode: EpisodeReader) -> Iterator[Indices]:
        return windows(episode.num_frames, self.length, source.info.step(self.video_stepsize), self.stride)

    def count(self) -> tuple[int, str]:
        """Number of clips, and a checksum of the episodes that they come from."""
        number, digest = 0, hashlib.blake2b(digest_size=16)
        for source, episode in tqdm(self.episodes(), desc="episodes", unit="episode", total=self.num_episodes):
            check_carries(episode, self.action_dim is not None, self.has_rewards, self.action_dim)
            number += sum(1 for _ in self.of(source, episode))
            digest.update(f"{source.info.name} {os.path.basename(episode.path)} {episode.num_frames}\n".encode())
        return number, digest.hexdigest()

    @property
    def num_episodes(self) -> int:
        return sum(len(source.files) for source in self.sources)

    def read(self, source: Source, episode: EpisodeReader, indices: Indices) -> ClipBatch:
        """One clip as a batch of one, with pixels in 0..255."""
        rng = np.random.default_rng(0)  # nothing is drawn without augmentation
        return source.cut(episode, indices, rng, self.action_dim is not None, self.has_rewards)


@dataclass(frozen=True)
class ClipTokenizer:
    """Frames in [0, 1] to flat token ids, on a device, in eval mode."""

    model: CompressiveVQModel
    device: torch.device
    autocast: bool

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            tokens, _ = self.model.tokenize(frames.to(self.device), self.model.context_length)
        return tokens.cpu()


def write_tokens(tokenizer: ClipTokenizer, clips: Clips, writer: TokenStoreWriter, batch_size: int) -> None:
    """Append the clips that the store does not hold yet."""
    remaining = islice(clips, writer.num_stored, None)
    with tqdm(total=writer.meta.num_clips, initial=writer.num_stored, desc="clips", unit="clip") as progress:
        while group := list(islice(remaining, batch_size)):
            batch = ClipBatch.concatenate([clips.read(*clip) for clip in group])
            writer.append(TokenBatch(tokenizer(unit_range(batch.frames)), batch.actions, batch.rewards))
            progress.update(len(group))
    writer.flush()


def main(argv: Sequence[str]) -> None:
    args = parse(TokenizeArgs, argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_tokenizer(args.pretrained_model_name_or_path).to(device)
    if args.context_length is not None:
        model.set_context_length(args.context_length)
    layout = _layout(model, args.segment_length)
    config = DataConfig(
        dataset_path=args.dataset_path,
        mix=args.oxe_data_mixes_type,
        segment=SegmentSpec("contiguous", args.segment_length),
        video_stepsize=args.video_stepsize,
        image_size=model.config.resolution,
        batch_size=args.batch_size,
    )
    clips = Clips.find(config, args.split, args.stride)
    num_clips, episodes = clips.count()
    meta = TokenStoreMeta(
        layout=layout,
        num_clips=num_clips,
        action_dim=clips.action_dim,
        has_rewards=clips.has_rewards,
        datasets=tuple(source.info.name for source in clips.sources),
        split=args.split,
        video_stepsize=args.video_stepsize,
        stride=args.stride,
        episodes=episodes,
        tokenizer=state_checksum(model.state_dict()),
    )
    writer = TokenStoreWriter(args.output, meta)
    write_tokens(ClipTokenizer(model, device, args.mixed_precision == "bf16"), clips, writer, args.batch_size)
    print(f"{writer.num_stored} clips of {clips.num_episodes} episodes in {args.output}")


def _layout(model: CompressiveVQModel, segment_length: int) -> TokenLayout:
    if segment_length <= model.context_length:
        raise UserError(
            f"--segment_length {segment_length} has no future after {model.context_length} context frames; raise it"
        )
    return model.layout(segment_length - model.context_length)
