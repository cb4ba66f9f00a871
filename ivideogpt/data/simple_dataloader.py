"""The loaders of the released code, under their import path and with their arguments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ivideogpt.data.clips.batches import PackedClips
from ivideogpt.data.clips.dataset import ClipDataset, DataConfig, PickByWeight, build_sources
from ivideogpt.data.clips.loaders import BatchNumbers, ClipLoader, build_benchmark_loader
from ivideogpt.data.clips.segments import SegmentSpec, segment_kind
from ivideogpt.data.clips.transforms import Augmentation, Range
from ivideogpt.data.dataset_mixes import DATASET_NAMED_MIXES

__all__ = ["DATASET_NAMED_MIXES", "EvalDataLoader", "SimpleRoboticDataLoaderv2"]


class SimpleRoboticDataLoaderv2:
    """The released implementation's loader: endless frames, ``(frames, actions)`` or ``(frames, actions, rewards)``.

    Colour ranges are pairs, or one number: the distance to either side. Without a seed, one is sampled from torch's
    global generator.
    """

    def __init__(
        self,
        parent_dir: str | None,
        datasets: str | Sequence[tuple[str, float]],
        batch_size: int = 2,
        num_workers: int = 1,
        train: bool = True,
        maxsize: int | None = None,
        image_size: int = 256,
        sthsth_root_path: str | None = None,
        brightness: Range | float = 0.1,
        contrast: Range | float = 0.1,
        saturation: Range | float = 0.1,
        hue: Range | float = 0.05,
        random_resized_crop_scale: Range = (0.8, 1.0),
        random_resized_crop_ratio: Range = (0.9, 1.1),
        no_aug: bool = False,
        random_selection: bool = False,
        random_shuffle: bool = False,
        goal_conditioned: bool = False,
        segment_length: int = 2,
        context_length: int = 1,
        stepsize: int = 1,
        segment_horizon: int | None = None,
        load_action: bool = False,
        load_reward: bool = False,
        seed: int | None = None,
    ) -> None:
        augmentation = Augmentation(
            crop_scale=_pair(random_resized_crop_scale),
            crop_ratio=_pair(random_resized_crop_ratio),
            brightness=_around(1.0, brightness),
            contrast=_around(1.0, contrast),
            saturation=_around(1.0, saturation),
            hue=_around(0.0, hue),
        )
        kind = segment_kind(random_selection, random_shuffle, goal_conditioned)
        config = DataConfig(
            dataset_path=parent_dir,
            mix=datasets if isinstance(datasets, str) else tuple((name, float(weight)) for name, weight in datasets),
            segment=SegmentSpec(kind, segment_length, context_length, segment_horizon),
            video_stepsize=stepsize,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            augmentation=None if no_aug else augmentation,
            dataset_size=maxsize,
            load_action=load_action,
            load_reward=load_reward,
            sthsth_root_path=sthsth_root_path,
        )
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        sources = build_sources(config, "train" if train else "test")
        num_episodes = sum(len(source.episodes) for source, _ in sources)
        self._num_batches = -(-num_episodes // batch_size)
        self.loader = ClipLoader(ClipDataset(config, PickByWeight(sources), seed), BatchNumbers(batch_size))

    def __len__(self) -> int:
        """Return the batches of one pass over the episodes; iteration does not end after them."""
        return self._num_batches

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, ...]]:
        return map(_as_tuple, self.loader)


class EvalDataLoader:
    """Test episodes of a benchmark, each once and in order: ``frames`` or ``(frames, actions)``, never augmented.

    Clips start at the first frame (VP2: anywhere, but at the same frame every time) and keep every native frame.
    """

    def __init__(
        self,
        dataset_name: str,
        segment_length: int,
        image_size: int,
        batch_size: int = 2,
        num_workers: int = 1,
        load_action: bool = False,
        dataset_yaml: str | None = None,
    ) -> None:
        config = DataConfig(
            mix=dataset_name,
            segment=SegmentSpec(length=segment_length),
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            load_action=load_action,
            dataset_yaml=dataset_yaml,
        )
        self.loader = build_benchmark_loader(config)

    def __len__(self) -> int:
        return self.loader.num_batches or 0

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, ...]]:
        return map(_as_tuple, self.loader.first(len(self)))


def _as_tuple(packed: PackedClips) -> Tensor | tuple[Tensor, ...]:
    batch = packed.to("cpu")
    parts = tuple(part for part in (batch.frames, batch.actions, batch.rewards) if part is not None)
    return parts if len(parts) > 1 else batch.frames


def _around(middle: float, amount: Range | float) -> Range:
    if isinstance(amount, (int, float)):
        return (max(middle - amount, 0.0) if middle else -amount, middle + amount)
    return _pair(amount)


def _pair(values: Sequence[float]) -> Range:
    low, high = values
    return float(low), float(high)
