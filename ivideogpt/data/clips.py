"""Clips by number: which episode, which frames, in which form. Knows how the parts of this package make one sample.

Sample k of a stream depends on the seed and k alone, whatever process makes it.
Shapes: B batch, T frames, H W pixels, D action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ivideogpt.data.catalog import (
    SOMETHING_SOMETHING,
    DatasetInfo,
    DatasetPaths,
    EpisodeFinder,
    Split,
    dataset_info,
    keep_some,
)
from ivideogpt.data.dataset_mixes import Mix, resolve_mix
from ivideogpt.data.episodes import EpisodeReader, check_carries, open_episode
from ivideogpt.data.segments import Indices, SegmentSpec, SegmentStrategy
from ivideogpt.data.transforms import Augmentation, Preprocess
from ivideogpt.errors import UserError


@dataclass(frozen=True)
class ClipBatch:
    """Frames (B, T, 3, H, W) float32 in [0, 1], actions (B, T, D) and rewards (B, T) float32 where asked for."""

    frames: Tensor
    actions: Tensor | None = None
    rewards: Tensor | None = None

    @classmethod
    def concatenate(cls, clips: Sequence[ClipBatch]) -> ClipBatch:
        """All rows of clips that carry the same things."""
        dims = {clip.actions.shape[-1] for clip in clips if clip.actions is not None}
        if len(dims) > 1:
            raise UserError(
                f"the mix holds actions of {sorted(dims)} dimensions; choose datasets of one dimension or drop actions"
            )
        return cls(
            torch.cat([clip.frames for clip in clips]),
            _cat_present([clip.actions for clip in clips]),
            _cat_present([clip.rewards for clip in clips]),
        )

    def to(self, device: torch.device | str, non_blocking: bool = True) -> ClipBatch:
        actions, rewards = (
            part if part is None else part.to(device, non_blocking=non_blocking)
            for part in (self.actions, self.rewards)
        )
        return ClipBatch(self.frames.to(device, non_blocking=non_blocking), actions, rewards)


def _cat_present(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


@dataclass(frozen=True)
class DataConfig:
    """Which clips to draw, from which episodes, in which form."""

    dataset_path: str | None = None  # folder of <dataset>/*.npz; the four sets of DATASET.yaml need none
    mix: str | Mix = "frac"  # see resolve_mix
    segment: SegmentSpec = field(default_factory=SegmentSpec)
    video_stepsize: int = 1
    image_size: int = 64
    batch_size: int = 16
    num_workers: int = 0
    augmentation: Augmentation | None = None  # of the training split
    dataset_size: int | None = None  # keep that many training episodes of each dataset
    load_action: bool = False
    load_reward: bool = False
    action_dim: int | None = None  # refuse episodes with another one
    dataset_yaml: str | None = None  # default: DATASET.yaml of the checkout
    sthsth_root_path: str | None = None

    def __post_init__(self) -> None:
        for name in ("video_stepsize", "image_size", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.segment.kind == "goal_first" and self.load_action:
            raise UserError("goal-conditioned clips carry no actions; drop action_conditioned or goal_conditioned")


@dataclass(frozen=True)
class Source:
    """The episodes of one dataset's split and how clips are cut from them."""

    info: DatasetInfo
    files: Sequence[str]
    segments: SegmentStrategy
    preprocess: Preprocess

    def open(self, index: int) -> EpisodeReader:
        return open_episode(self.files[index], self.info.image_key)

    def cut(
        self,
        episode: EpisodeReader,
        indices: Indices,
        rng: np.random.Generator,
        with_actions: bool = False,
        with_rewards: bool = False,
    ) -> ClipBatch:
        """These frames as a batch of one, with pixels in 0..255: 8 bits are cheaper to hand over than floats."""
        pixels = self.preprocess(episode.read(indices), rng)
        actions = episode.actions(indices) if with_actions else None
        rewards = episode.rewards(indices) if with_rewards else None
        return ClipBatch(
            pixels[None],
            None if actions is None else torch.from_numpy(actions)[None],
            None if rewards is None else torch.from_numpy(rewards)[None],
        )


def build_sources(config: DataConfig, split: Split) -> list[tuple[Source, float]]:
    """The mix's datasets with their weights. The first episode of each is checked."""
    root = Path(config.dataset_path) if config.dataset_path else None
    find = EpisodeFinder(root, DatasetPaths.load(config.dataset_yaml))
    sources = []
    for name, weight in resolve_mix(config.mix, root):
        if name == SOMETHING_SOMETHING:
            raise _something_something_missing(config)
        info = dataset_info(name)
        files = find(name, split)
        source = Source(
            info,
            keep_some(files, config.dataset_size) if split == "train" else files,
            config.segment.strategy(info.step(config.video_stepsize)),
            Preprocess(config.image_size, info.square_crop, config.augmentation if split == "train" else None),
        )
        _check(source.open(0), config)
        sources.append((source, weight))
    return sources


def _something_something_missing(config: DataConfig) -> UserError:
    return UserError(
        f"mix {config.mix!r} holds Something-Something v2 ({SOMETHING_SOMETHING}), whose frame folders "
        f"(sthsth_root_path {config.sthsth_root_path}) this version cannot read; choose another mix, such as select"
    )


def _check(episode: EpisodeReader, config: DataConfig) -> None:
    check_carries(episode, config.load_action, config.load_reward, config.action_dim)


# From the number of a sample to the dataset and the episode that it is cut from.
Pick = Callable[[int, np.random.Generator], tuple[Source, int]]


class PickByWeight:
    """A dataset by its weight, then any of its episodes."""

    def __init__(self, sources: list[tuple[Source, float]]) -> None:
        self.sources = [source for source, _ in sources]
        self._cumulative = np.cumsum([weight for _, weight in sources])

    def __call__(self, number: int, rng: np.random.Generator) -> tuple[Source, int]:
        chosen = np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right")
        source = self.sources[chosen]
        return source, int(rng.integers(len(source.files)))


class PickInOrder:
    """Every episode of every dataset in turn, then all over again."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self._ends = np.cumsum([len(source.files) for source in sources])

    @property
    def num_episodes(self) -> int:
        return int(self._ends[-1])

    def __call__(self, number: int, rng: np.random.Generator) -> tuple[Source, int]:
        number %= self.num_episodes
        chosen = int(np.searchsorted(self._ends, number, side="right"))
        source = self.sources[chosen]
        return source, number - int(self._ends[chosen]) + len(source.files)


class ClipDataset(Dataset[Any]):
    """Clips by their number in the stream. Batches are made where the frames are read, in the worker."""

    def __init__(self, config: DataConfig, pick: Pick, seed: int) -> None:
        self.config = config
        self.pick = pick
        self.seed = seed

    def __getitem__(self, number: int) -> ClipBatch:
        """Sample ``number`` as a batch of one."""
        rng = np.random.default_rng((self.seed, number))
        source, file = self.pick(number, rng)
        episode = source.open(file)
        _check(episode, self.config)
        indices = source.segments(episode.num_frames, rng)
        return source.cut(episode, indices, rng, self.config.load_action, self.config.load_reward)

    def __getitems__(self, numbers: list[int]) -> ClipBatch | UserError:
        """The batch of these samples. An error is returned, as raising it in a worker would bury it in a traceback."""
        try:
            return ClipBatch.concatenate([self[number] for number in numbers])
        except UserError as error:
            return error
