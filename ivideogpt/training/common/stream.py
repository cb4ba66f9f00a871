"""The endless stream of training batches. Knows loaders; knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch


class Batch(Protocol):
    def to(self, device: torch.device) -> Any:
        """Return the batch that a model takes, on this device."""


class Loader(Protocol):
    """An endless iterable of batches with a position, and a fixed beginning for validation."""

    def __iter__(self) -> Iterator[Any]: ...

    def first(self, num_batches: int) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class BatchStream:
    """Training batches on the device, one after another. Its state is its position.

    On a GPU they are copied and finished on a stream of their own, beside the step that the GPU is still busy with:
    Python asks for a batch well before that step ends. Nothing is fetched ahead, so the position needs no correction.
    """

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self._loader = loader
        self._device = device
        self._beside = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._batches: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._batches is None:
            self._batches = iter(self._loader)
        batch = next(self._batches)
        if self._beside is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._beside):
            finished = batch.to(self._device)
        training = torch.cuda.current_stream(self._device)
        training.wait_stream(self._beside)
        for part in vars(finished).values():
            if part is not None:
                part.record_stream(training)  # the next batch must not reuse the memory before the step is done
        return finished

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loader.load_state_dict(state)
