"""The processes that share an evaluation. Knows torch.distributed; knows nothing of what they evaluate."""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from ivideogpt.errors import UserError

T = TypeVar("T")

PATIENCE = timedelta(days=7)


class Processes:
    """The processes of an evaluation; one, unless a launcher started several."""

    def __init__(self) -> None:
        several = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if several else 0
        self.count = distributed.get_world_size() if several else 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, part: T | UserError) -> list[T]:
        """Gather the parts of all ranks, in order. All processes call it; the error of one is raised on all.

        Raises:
            UserError: a part is an error.
        """
        parts: list[T | UserError | None] = [part]
        if self.count > 1:
            parts = [None] * self.count
            distributed.all_gather_object(parts, part, group=_patient_group())
        for gathered in parts:
            if isinstance(gathered, UserError):
                raise gathered
        return parts  # type: ignore[return-value]


@functools.cache
def _patient_group() -> distributed.ProcessGroup | None:
    """Create a group of all processes with a long timeout: others may sample for hours."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def join_processes(device: torch.device) -> Processes:
    """Join the processes that torchrun or ``accelerate launch`` started."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group("gloo")
    return Processes()


def leave_processes() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
