"""Collect facts of a recorded episode that point to faults. Knows readers and arrays; prints nothing.

Shapes: N frames, H W pixels, D action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.formats.episodes import EpisodeReader, StoredArray, chunks

BLACK = 16  # maximum pixel value of a black frame
FLAT = 4  # pixels of a frame of one colour differ by less
_THUMBNAIL = 32  # size of the pictures that motion is measured on: averaging removes noise


@dataclass(frozen=True)
class FrameFacts:
    """Facts of the first n frames of an episode. Frames are given by number."""

    motion: NDArray[np.float64]  # (n - 1,) mean |difference| of a frame and the next, in 0..255
    black: tuple[int, ...]
    flat: tuple[int, ...]  # frames of one colour, but not black
    repeated: tuple[int, ...]  # frames identical to the one before
    brightest: int


@dataclass(frozen=True)
class EpisodeFacts:
    name: str
    num_frames: int
    frame_size: tuple[int, int]
    arrays: tuple[StoredArray, ...]
    frames: FrameFacts
    actions: NDArray[np.float32] | None  # (N, D)
    rewards: NDArray[np.float32] | None  # (N,)
    remarks: tuple[str, ...] = ()


def inspect_episode(episode: EpisodeReader, name: str, max_frames: int) -> EpisodeFacts:
    """Read the first ``max_frames`` frames, and all actions and rewards.

    Raises:
        UserError: something in it cannot be read or does not fit, NaN included.
    """
    everything = np.arange(episode.num_frames)
    actions = None if episode.action_dim is None else episode.actions(everything)
    rewards = episode.rewards(everything) if episode.has_rewards else None
    frames = frame_facts(episode, min(max_frames, episode.num_frames))
    facts = episode.num_frames, episode.frame_size, episode.describe()
    return EpisodeFacts(name, *facts, frames, actions, rewards, episode.remarks())


def frame_facts(episode: EpisodeReader, num_frames: int) -> FrameFacts:
    motion: list[NDArray[np.float64]] = []
    low: list[NDArray[np.uint8]] = []
    high: list[NDArray[np.uint8]] = []
    repeated: list[int] = []
    last: NDArray[np.uint8] | None = None
    for indices in chunks(episode, num_frames):
        frames = episode.read(indices)
        low.append(frames.min(axis=(1, 2, 3)))
        high.append(frames.max(axis=(1, 2, 3)))
        joined = frames if last is None else np.concatenate([last[None], frames])
        thumbnails = _thumbnails(joined)
        motion.append(np.abs(np.diff(thumbnails, axis=0)).mean(axis=(1, 2, 3)))
        first = int(indices[-1]) + 2 - len(joined)  # number of the second frame of `joined`
        repeated += [first + i for i in range(len(joined) - 1) if np.array_equal(joined[i], joined[i + 1])]
        last = frames[-1]
    lows, highs = np.concatenate(low).astype(int), np.concatenate(high).astype(int)
    black = highs < BLACK
    return FrameFacts(
        motion=np.concatenate(motion),
        black=_numbers(black),
        flat=_numbers(~black & (highs - lows < FLAT)),
        repeated=tuple(repeated),
        brightest=int(highs.max()),
    )


def _thumbnails(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Average frames (n, H, W, 3) over squares of pixels."""
    num_frames, height, width, _ = frames.shape
    side = max(min(height, width) // _THUMBNAIL, 1)
    rows, columns = height // side, width // side
    squares = frames[:, : rows * side, : columns * side].reshape(num_frames, rows, side, columns, side, 3)
    return squares.mean(axis=(2, 4))


def _numbers(flags: NDArray[Any]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(flags).tolist())
