"""Read recorded episodes, and make batches of clips. Names are imported lazily: converters need no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivideogpt.data.clips.batches import ClipBatch
    from ivideogpt.data.clips.dataset import DataConfig
    from ivideogpt.data.clips.loaders import ClipLoader, build_loader
    from ivideogpt.data.clips.segments import SegmentSpec
    from ivideogpt.data.clips.transforms import STRONG_AUGMENTATION, Augmentation
    from ivideogpt.data.dataset_mixes import DATASET_NAMED_MIXES
    from ivideogpt.data.simple_dataloader import EvalDataLoader, SimpleRoboticDataLoaderv2

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
    "EvalDataLoader": "simple_dataloader",
    "SimpleRoboticDataLoaderv2": "simple_dataloader",
    "STRONG_AUGMENTATION": "clips.transforms",
    "Augmentation": "clips.transforms",
    "SegmentSpec": "clips.segments",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'clips.loaders')}"), name)
