"""Shared parts of the benchmarks: timers, medians, a description of the machine, and the output file."""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


@dataclass
class Timer:
    """Timer of named parts that synchronises the device at their ends. Parts of one name are added."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.add(name, self.now() - start)

    def now(self) -> float:
        """Return the time after the device has finished its queue."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def medians(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {part: statistics.median(turn[part] for turn in turns) for part in turns[0]}


def write_results(path: str | None, results: Mapping[str, Any], *packages: str) -> None:
    """Write `results` as JSON, with the machine and the versions of torch and `packages`; nothing without a path."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        cpuinfo = Path("/proc/cpuinfo")  # Linux only
        names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
        machine = {"processor": names[0] if names else platform.processor() or platform.machine()}
        if torch.cuda.is_available():
            machine["gpu"] = torch.cuda.get_device_name()
        machine |= {"python": platform.python_version(), "torch": torch.__version__}
        machine |= {package: version(package) for package in packages}
        record = {"machine": machine, "threads": torch.get_num_threads(), **results}
        Path(path).write_text(json.dumps(record, indent=2) + "\n")
