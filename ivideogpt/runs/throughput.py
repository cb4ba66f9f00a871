"""Training throughput, and the seconds that each part of a step takes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Throughput:
    """Clips per second since the last log line, seconds per part of a step, and minutes to the end.

    On a GPU, whose work Python does not wait for, a part takes the GPU's time or Python's, whichever is longer.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._steps = self._clips = 0
        self._seconds: dict[str, float] = {}
        self._events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Time a part of the step: ``with throughput.timing("data"):``."""
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
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated() / 2**30
        else:  # peak of this process, which macOS counts in bytes and Linux in kilobytes
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
        result = {
            "clips_per_s": self._clips / seconds,
            "step_s": seconds / steps,
            **{f"{part}_s": part_seconds / steps for part, part_seconds in self._seconds.items()},
            "memory_gb": memory,
            "eta_min": steps_left * seconds / steps / 60,
        }
        self.__init__()  # type: ignore[misc]
        return result


def _now_on_gpu() -> torch.cuda.Event | None:
    if not torch.cuda.is_available():
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
