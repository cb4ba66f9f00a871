"""The device that a command runs on, the launcher that started its processes, and the versions of packages."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ivideogpt.errors import UserError

if TYPE_CHECKING:
    import torch

# By which MPI, SLURM and their kin tell a process how many there are.
FOREIGN_COUNTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "WORLD_SIZE")
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
DEVICES = ("auto", "cpu", "cuda", "mps")


def check_launcher() -> None:
    """Refuse launchers other than torchrun and ``accelerate launch`` before any process waits for another.

    Other launchers' variables also stay behind in shells and containers, where accelerate would take them for its own.
    So an environment that speaks of several processes, of which torchrun has not started this one, is a UserError.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return
    several = [name for name in FOREIGN_COUNTS if os.environ.get(name, "1").strip() != "1"]
    lone = [] if all(name in os.environ for name in OF_TORCHRUN) else ["LOCAL_RANK"] * ("LOCAL_RANK" in os.environ)
    for name in several + lone:
        raise UserError(
            f"the environment has {name}={os.environ[name]}, and neither torchrun nor accelerate launch has started "
            f"this process: start several with one of these, or unset {name} for one process alone"
        )


def several_without_gpu() -> bool:
    """Return whether torchrun has started several processes on a machine without a GPU.

    Accelerate connects them only if it is told that they run on the CPU. Otherwise each would do the whole work alone.
    """
    import torch  # here, as commands read DEVICES for --help

    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()


def choose_device(name: str) -> torch.device:
    """Return the device that ``--device`` names; each of several processes on a machine gets a GPU of its own.

    A UserError says if there is none, or if there are fewer GPUs than processes.
    """
    import torch  # here, as commands read DEVICES for --help

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UserError(f"--device {name} is not available here: {', '.join(filter(available.get, available))}")
    if name != "cuda" or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return torch.device(name)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if rank >= torch.cuda.device_count():
        raise UserError(f"{rank + 1} processes or more, {torch.cuda.device_count()} GPUs: start fewer processes")
    return torch.device("cuda", rank)


@functools.cache
def processor_flags() -> str:
    """Return the line of ``/proc/cpuinfo`` with this processor's features; its name where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def has_bfloat16_units() -> bool:
    """Return whether this CPU computes in bfloat16 by itself. Otherwise torch emulates it, up to 15 times as slowly."""
    return any(flag in processor_flags().split() for flag in ("amx_bf16", "avx512_bf16", "bf16"))


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of Python and of these packages; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()} | dict.fromkeys(packages)
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
