"""Recorded episodes to batches of clips. Names are loaded when asked for: converters need no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivideogpt.data.clips.batches import ClipBatch
    from ivideogpt.data.clips.loaders import (
        ClipLoader,
        DataConfig,
        EvalDataLoader,
        SimpleRoboticDataLoaderv2,
        build_loader,
    )
    from ivideogpt.data.clips.segments import SegmentSpec
    from ivideogpt.data.clips.transforms import STRONG_AUGMENTATION, Augmentation
    from ivideogpt.data.dataset_mixes import DATASET_NAMED_MIXES

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

_HOME = {
    "ClipBatch": "clips.batches",
    "DATASET_NAMED_MIXES": "dataset_mixes",
    "STRONG_AUGMENTATION": "clips.transforms",
    "Augmentation": "clips.transforms",
    "SegmentSpec": "clips.segments",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'clips.loaders')}"), name)
