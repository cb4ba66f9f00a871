"""Choose the frames of a clip. Knows frame numbers; knows neither files nor pixels.

A strategy is a function ``(num_frames, rng) -> indices``. Short episodes repeat their last frame; sparse and shuffled
clips do so only if the episode has fewer frames than the clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ivideogpt.errors import UserError

Indices = NDArray[np.int64]
SegmentStrategy = Callable[[int, Generator], Indices]
SegmentKind = Literal["contiguous", "sparse_future", "shuffled", "goal_first", "leading"]


def fitting_step(step: int, horizon: int, num_frames: int) -> int:
    """Return the step, or the largest smaller one with which ``horizon`` steps fit into the episode."""
    return step if step * horizon <= num_frames else max(1, num_frames // horizon)


def last_start(num_frames: int, horizon: int, step: int) -> int:
    """Return the last possible start of a segment of ``horizon`` steps."""
    return max(num_frames - step * horizon, 0)


def repeat_last(indices: Indices, num_frames: int) -> Indices:
    return np.minimum(indices, num_frames - 1)


@dataclass(frozen=True)
class Windows:
    """All contiguous segments whose start is a multiple of ``stride``, in order; a short episode gives one."""

    num_frames: int
    length: int
    step: int
    stride: int

    @property
    def fitting_step(self) -> int:
        return fitting_step(self.step, self.length, self.num_frames)

    def __len__(self) -> int:
        return last_start(self.num_frames, self.length, self.fitting_step) // self.stride + 1

    def __getitem__(self, number: int) -> Indices:
        start = range(len(self))[number] * self.stride
        return repeat_last(start + self.fitting_step * np.arange(self.length), self.num_frames)


def _distinct(number: int, horizon: int, num_existing: int, rng: Generator) -> Indices:
    """Sample distinct numbers below `horizon` in random order; beyond the existing frames only if these are too few."""
    num_existing = max(min(num_existing, horizon), 0)
    if num_existing >= number:
        return rng.choice(num_existing, number, replace=False)
    return rng.permutation(np.concatenate([np.arange(num_existing), np.full(number - num_existing, num_existing)]))


@dataclass(frozen=True)
class SegmentSpec:
    """User's specification of a clip. ``horizon`` is for sparse and shuffled clips, and defaults to ``length``."""

    kind: SegmentKind = "contiguous"
    length: int = 16
    context_length: int = 1
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(SegmentKind):
            raise UserError(f"unknown kind of segment {self.kind!r}; choose one of {', '.join(get_args(SegmentKind))}")
        if (self.length < 2 and self.kind == "goal_first") or self.length < 1:
            raise UserError(f"segment_length {self.length} is too short for a {self.kind} segment")
        if self.kind == "sparse_future" and not 0 < self.context_length <= self.length:
            raise UserError(f"context_length {self.context_length} must be between 1 and segment_length {self.length}")
        if self.horizon is not None and self.horizon < self.length:
            raise UserError(f"segment_horizon {self.horizon} has no room for segment_length {self.length} frames")

    @property
    def num_frames_spanned(self) -> int:
        """Return the minimum episode length for a clip at step 1 without repeated frames."""
        if self.kind in ("sparse_future", "shuffled"):
            return self.horizon or self.length
        return self.length - (self.kind == "goal_first")

    def strategy(self, step: int = 1) -> SegmentStrategy:
        """Return the function that chooses a clip's frames, which are ``step`` apart in an episode that is long enough.

        Every kind but `leading` proposes offsets from a random start; the step shrinks to fit the episode.
        """
        return partial(self._indices, step)

    def _indices(self, step: int, num_frames: int, rng: Generator) -> Indices:
        if self.kind == "leading":
            return repeat_last(np.arange(self.length), num_frames)
        horizon = self.num_frames_spanned
        step = fitting_step(step, horizon, num_frames)
        start = int(rng.integers(last_start(num_frames, horizon, step), endpoint=True))
        return repeat_last(start + self._offsets(step, num_frames - start, rng), num_frames)

    def _offsets(self, step: int, num_frames: int, rng: Generator) -> Indices:
        """Sample offsets from a start with ``num_frames`` frames after it."""
        evenly, horizon = step * np.arange(self.length), self.num_frames_spanned
        match self.kind:
            case "sparse_future":
                first = step * self.context_length
                number = self.length - self.context_length
                future = first + _distinct(number, step * horizon - first, num_frames - first, rng)
                return np.concatenate([evenly[: self.context_length], np.sort(future)])
            case "shuffled":
                return step * _distinct(self.length, horizon, -(-num_frames // step), rng)
            case "goal_first":
                return np.concatenate([evenly[-2:-1], evenly[:-1]])
            case _:
                return evenly


def segment_kind(rand_select: bool = False, rand_shuffle: bool = False, goal_conditioned: bool = False) -> SegmentKind:
    """Return the kind of segment that the historical flags select."""
    if rand_select + rand_shuffle + goal_conditioned > 1:
        raise UserError("rand_select, rand_shuffle and goal_conditioned exclude each other; give at most one")
    if rand_select:
        return "sparse_future"
    if rand_shuffle:
        return "shuffled"
    return "goal_first" if goal_conditioned else "contiguous"
