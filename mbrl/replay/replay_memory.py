"""Memory that replay buffers need, and memory that the machine has."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ivideogpt.errors import UserError
from mbrl.replay.replay_buffer import EpisodeShape

logger = logging.getLogger(__name__)

USABLE = 0.8  # share of the available memory: models and environments need some, too


def needed_memory(capacity: int, shape: EpisodeShape, episode_steps: Sequence[int]) -> int:
    """Return the most bytes that buffers of ``capacity`` rows take; each has episodes of so many steps.

    An episode holds a row more than its steps, and the earlier frames of its first stack.
    """
    channels, height, width = shape.frame
    row_bytes = channels * height * width + 4 * (shape.action_dim + 2)  # reward and discount, too
    return sum(-(-capacity // steps) * (steps + shape.frame_stack) * row_bytes for steps in episode_steps)


def affordable_capacity(
    capacity: int, shape: EpisodeShape, episode_steps: Sequence[int], available: int | None = None
) -> int:
    """Return ``capacity``, or with a warning as much of it as fits into memory.

    Args:
        episode_steps: of each buffer's episodes; all buffers get the same capacity.
        available: bytes; what this machine has now, if not given.

    Raises:
        UserError: not even one episode fits.
    """
    available = available_memory() if available is None else available
    needed = partial(needed_memory, shape=shape, episode_steps=episode_steps)
    lowered, at_least = capacity, max(episode_steps)
    while needed(lowered) > USABLE * available:
        lowered = min(int(lowered * USABLE * available / needed(lowered)), lowered - 1)
        if lowered < at_least:
            raise UserError(
                f"{available / 2**30:.2f} GiB of memory are too little for {len(episode_steps)} replay buffers of "
                f"one episode each ({needed(at_least) / 2**30:.2f} GiB): free some"
            )
    if lowered < capacity:
        logger.warning(
            "replay_buffer_size %d needs %.1f GiB and %.1f GiB are available: lowered to %d",
            capacity, needed(capacity) / 2**30, available / 2**30, lowered,
        )  # fmt: skip
    return lowered


def warn_if_too_much(
    capacity: int, shape: EpisodeShape, episode_steps: Sequence[int], available: int | None = None
) -> None:
    """Warn of buffers of a fixed capacity that need too much memory. Arguments as in `affordable_capacity`."""
    available = available_memory() if available is None else available
    needed = needed_memory(capacity, shape, episode_steps)
    if needed > USABLE * available:
        logger.warning(
            "this run began with replay buffers for %d steps, %.1f GiB when full, and goes on with them: %.1f GiB are "
            "available, which may be too little", capacity, needed / 2**30, available / 2**30,
        )  # fmt: skip


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int:
    """Return the bytes that this process can still take, from the machine and every limited control group.

    Args:
        own: says in which groups the process is.
    """
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = _entries(meminfo)["MemAvailable:"] * 1024
    return min([available, *_left_in_groups(cgroup, own)])


def _left_in_groups(cgroup: Path, own: Path) -> Iterator[int]:
    """Yield what is left in each control group that has a limit.

    In a container a path may be the host's, of which only the root is there.
    """
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root, limit, in_use = cgroup, "memory.max", "anon"
        elif "memory" in controllers.split(","):
            root, limit, in_use = cgroup / "memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        inside = root / Path(path).relative_to("/")
        for folder in (inside, *inside.parents):
            most = (folder / limit).read_text().strip() if (folder / limit).is_file() else "max"
            if folder.is_relative_to(root) and most != "max":
                yield int(most) - _entries(folder / "memory.stat")[in_use]


def _entries(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value, *_ in map(str.split, path.read_text().splitlines())}
