"""Where a command runs."""

from __future__ import annotations

import os

import torch

from ivideogpt.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str) -> torch.device:
    """The device that ``--device`` names; of several processes on a machine each gets a GPU of its own.

    Raises:
        UserError: there is none, or there are fewer GPUs than processes.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UserError(
            f"--device {name} is not available here: {', '.join(kind for kind in available if available[kind])}"
        )
    if name != "cuda" or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return torch.device(name)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if rank >= torch.cuda.device_count():
        raise UserError(f"{rank + 1} processes or more, {torch.cuda.device_count()} GPUs: start fewer processes")
    return torch.device("cuda", rank)
