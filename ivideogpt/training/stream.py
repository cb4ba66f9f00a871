"""The endless stream of training batches. Knows loaders; knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch


class Batch(Protocol):
    def to(self, device: torch.device) -> Any: ...


class Loader(Protocol):
    """An endless iterable of batches with a position, and a fixed beginning for validation."""

    def __iter__(self) -> Iterator[Any]: ...

    def first(self, num_batches: int) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class BatchStream:
    """Training batches on the device, one after another. Its state is its position."""

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self._loader = loader
        self._device = device
        self._batches: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._batches is None:
            self._batches = iter(self._loader)
        return next(self._batches).to(self._device)

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loader.load_state_dict(state)
