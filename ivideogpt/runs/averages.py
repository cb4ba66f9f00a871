"""Means of metrics between two log lines, summed on their device so that no addition waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class MetricAverager:
    """Sums and counts by name. Part of a checkpoint, so a resumed run logs the same means."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor | float], count: int = 1) -> None:
        """Add metrics that are means over `count` items, which then count equally."""
        for name, value in metrics.items():
            value = torch.as_tensor(value).detach().float() * count
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + count

    def means(self) -> dict[str, Tensor]:
        """Return the means so far, still on their device."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def values(self) -> dict[str, float]:
        """Return the means so far as numbers; this waits for the device."""
        return {name: total.item() / self._counts[name] for name, total in self._sums.items()}

    def take(self) -> dict[str, float]:
        """Return :meth:`values` and begin again with none."""
        values = self.values()
        self._sums, self._counts = {}, {}
        return values

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {name: total.item() for name, total in self._sums.items()}, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with saved sums, numbers or tensors; float32, as some accelerators have no float64."""
        self._sums = {name: torch.as_tensor(total, dtype=torch.float32) for name, total in state["sums"].items()}
        self._counts = dict(state["counts"])
