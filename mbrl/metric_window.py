"""Means of metrics since they were last taken, summed on their device so that nobody waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class MetricWindow:
    """Part of a snapshot, so a resumed run takes the same means."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor], prefix: str = "") -> None:
        for key, value in metrics.items():
            name = prefix + key
            self._sums[name] = self._sums[name] + value if name in self._sums else value.detach().clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """This waits for the device."""
        return {name: total.item() / self._counts[name] for name, total in self._sums.items()}

    def take(self) -> dict[str, float]:
        """:meth:`means`; the window is empty afterwards."""
        means = self.means()
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {name: total.cpu() for name, total in self._sums.items()}, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
