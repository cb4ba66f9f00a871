"""What a benchmark ran on. Part of every result."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch


def machine(*packages: str) -> dict[str, str]:
    """Processor, accelerator if there is one, and versions of Python, torch and ``packages``."""
    facts = {"processor": processor_name(), "python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts | {package: version(package) for package in packages}


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
