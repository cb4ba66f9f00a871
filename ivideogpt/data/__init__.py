"""Read recorded episodes, and make batches of clips. Names of the released code are imported lazily: torch is slow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivideogpt.data.simple_dataloader import DATASET_NAMED_MIXES, EvalDataLoader, SimpleRoboticDataLoaderv2

__all__ = ["DATASET_NAMED_MIXES", "EvalDataLoader", "SimpleRoboticDataLoaderv2"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ivideogpt.data import simple_dataloader

    return getattr(simple_dataloader, name)
