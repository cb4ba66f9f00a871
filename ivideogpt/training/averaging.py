"""The running mean of a model's weights that ``--use_ema`` validates with and ends with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.training_utils import EMAModel
from torch import nn


class AveragedWeights:
    """Exponential moving average of the weights of ``model``, updated after each of its optimizer's updates.

    The decay is diffusers' default: n / (9 + n) at update n, at most 0.9999. The average is part of every checkpoint
    and the same in all processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._average = EMAModel(model.parameters(), foreach=True)

    def update(self) -> None:
        self._average.step(self._model.parameters())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again afterwards."""
        self._average.store(self._model.parameters())
        self._average.copy_to(self._model.parameters())
        try:
            yield
        finally:
            self._average.restore(self._model.parameters())

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average.load_state_dict(state)
        self._average.to(device=next(self._model.parameters()).device)
