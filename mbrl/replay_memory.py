"""What replay buffers cost in memory, and what the machine has."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ivideogpt.errors import UserError
from mbrl.film import frames_in_a_block
from mbrl.replay_buffer import EpisodeShape

logger = logging.getLogger(__name__)

USABLE = 0.8  # of what is available: models and environments need some, too


def buffer_bytes(capacity: int, shape: EpisodeShape, episode_steps: int) -> int:
    """The most that a buffer of ``capacity`` rows takes when its episodes have ``episode_steps`` steps.

    An episode holds a row more than its steps, and the earlier frames of its first stack. Blocks end with a gap in
    which no episode fits, and one more than full ones is in use: the oldest may be all but empty.
    """
    num_floats = shape.action_dim + 2  # and reward and discount
    channels, height, width = shape.frame
    frame_bytes = channels * height * width + 4 * num_floats
    block_frames = frames_in_a_block(capacity)
    rows_in_a_block = block_frames // (episode_steps + shape.frame_stack) * episode_steps
    if not rows_in_a_block:
        raise UserError(f"episodes of {episode_steps} steps do not fit into a replay buffer for {capacity} rows")
    num_blocks = -(-capacity // rows_in_a_block) + 1
    return num_blocks * block_frames * frame_bytes


def affordable_capacity(
    capacity: int, shape: EpisodeShape, episode_steps: Sequence[int], available: int | None = None
) -> int:
    """``capacity``, or with a warning as much of it as fits into memory.

    Args:
        episode_steps: of each buffer's episodes; all buffers get the same capacity.
        available: bytes; what this machine has now, if not given.

    Raises:
        UserError: not even one episode fits.
    """
    available = available_memory() if available is None else available

    def needed(rows: int) -> int:
        return sum(buffer_bytes(rows, shape, steps) for steps in episode_steps)

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


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process could still take: of the machine, and of its container if that has a limit."""
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = _entries(meminfo)["MemAvailable:"] * 1024
    limit = cgroup / "memory.max"
    if not limit.is_file() or (most := limit.read_text().strip()) == "max":
        return available
    return min(available, int(most) - _entries(cgroup / "memory.stat")["anon"])


def _entries(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value, *_ in map(str.split, path.read_text().splitlines())}
