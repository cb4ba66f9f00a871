"""What is measured between two log lines: means of metrics, and the pace of training."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class MetricWindow:
    """Means of metrics since the last log line. Part of a checkpoint, so a resumed run logs the same means."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor | float], count: int = 1) -> None:
        """Metrics that are means over ``count`` things, which then count equally."""
        for name, value in metrics.items():
            value = torch.as_tensor(value).detach().float() * count
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + count

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes; empties the window."""
        if not self._sums:
            return {}
        means = torch.stack([total.cpu() / self._counts[name] for name, total in self._sums.items()])
        means = accelerator.reduce(means.to(accelerator.device), "mean").cpu()
        result = dict(zip(self._sums, means.tolist(), strict=True))
        self._sums, self._counts = {}, {}
        return result

    def means(self) -> dict[str, Tensor]:
        """Means on this process, still on their device."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {name: total.item() for name, total in self._sums.items()}, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = {name: torch.tensor(total) for name, total in state["sums"].items()}
        self._counts = dict(state["counts"])


class Pace:
    """Speed since the last log line: clips a second, where the time went, when the run will end.

    On a GPU, whose work Python does not wait for, a part is as long as the GPU is at it, or Python if that is longer.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._steps = self._clips = 0
        self._seconds: dict[str, float] = {}
        self._events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """``with pace.timing("data"):`` around a part of the step."""
        start = time.perf_counter()
        before = _now_on_gpu()
        yield
        self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - start
        if before is not None and (after := _now_on_gpu()) is not None:
            self._events.setdefault(part, []).append((before, after))

    def add_clips(self, clips: int) -> None:
        self._clips += clips

    def step(self) -> None:
        self._steps += 1

    def take(self, steps_left: int) -> dict[str, float]:
        if self._events:
            torch.cuda.synchronize()
        for part, pairs in self._events.items():
            on_gpu = sum(before.elapsed_time(after) for before, after in pairs) / 1000
            self._seconds[part] = max(self._seconds[part], on_gpu)
        seconds, steps = time.perf_counter() - self._start, max(self._steps, 1)
        pace = {
            "clips_per_s": self._clips / seconds,
            "step_s": seconds / steps,
            **{f"{part}_s": part_seconds / steps for part, part_seconds in self._seconds.items()},
            "memory_gb": _memory_gb(),
            "eta_min": steps_left * seconds / steps / 60,
        }
        self.__init__()  # type: ignore[misc]
        return pace


def _now_on_gpu() -> torch.cuda.Event | None:
    if not torch.cuda.is_available():
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _memory_gb() -> float:
    """Largest memory so far: of the accelerator if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
