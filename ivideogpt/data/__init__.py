"""Recorded episodes to batches of clips."""

from ivideogpt.data.dataset_mixes import DATASET_NAMED_MIXES
from ivideogpt.data.loaders import (
    ClipBatch,
    ClipLoader,
    DataConfig,
    EvalDataLoader,
    SimpleRoboticDataLoaderv2,
    build_loader,
)
from ivideogpt.data.segments import SegmentSpec
from ivideogpt.data.transforms import STRONG_AUGMENTATION, Augmentation

__all__ = [
    "DATASET_NAMED_MIXES",
    "STRONG_AUGMENTATION",
    "Augmentation",
    "ClipBatch",
    "ClipLoader",
    "DataConfig",
    "EvalDataLoader",
    "SegmentSpec",
    "SimpleRoboticDataLoaderv2",
    "build_loader",
]
