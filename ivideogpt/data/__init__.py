"""Recorded episodes to batches of clips. Names are loaded when asked for: converters need no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivideogpt.data.batches import ClipBatch
    from ivideogpt.data.dataset_mixes import DATASET_NAMED_MIXES
    from ivideogpt.data.loaders import (
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

_HOME = {
    "ClipBatch": "batches",
    "DATASET_NAMED_MIXES": "dataset_mixes",
    "STRONG_AUGMENTATION": "transforms",
    "Augmentation": "transforms",
    "SegmentSpec": "segments",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'loaders')}"), name)
