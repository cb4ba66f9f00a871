"""EMA of a model's weights, which ``--use_ema`` validates with and saves at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MAX_DECAY = 0.9999
WARM_UP = 9  # update n has decay n / (WARM_UP + n), as in diffusers: a young average forgets its beginning


class EmaWeights:
    """EMA of the trained weights of ``model``, updated after each of its optimizer's updates.

    Weights that do not train, such as codebooks that are running means already, have no average of their own. The state
    is part of every checkpoint and the same in all processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._averages = {name: weight.detach().clone() for name, weight in self._trained.items()}
        self._updates = 0

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Update the EMA; the first call copies the weights. Nothing changes after a ``skipped`` (1) update."""
        decay = min(self._updates / (WARM_UP + self._updates), MAX_DECAY)
        share = (1 - decay) * (1 - skipped)  # known to the device alone
        averages = list(self._averages.values())
        torch._foreach_lerp_(averages, list(self._trained.values()), [share] * len(averages))
        self._updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the EMA into the model for the duration, and its own weights back afterwards."""
        own = self._put(self._averages)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Exchange the model's values, without a copy. Returns those that it had."""
        before = {name: weight.data for name, weight in self._trained.items()}
        for name, weight in self._trained.items():
            weight.data = values[name]
        return before

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "averages": self._averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._updates = state["updates"]
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])
