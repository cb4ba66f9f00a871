"""Which frames of an episode make a clip. Knows frame numbers; knows neither files nor pixels.

A strategy is a function ``(num_frames, rng) -> indices``. Every random strategy proposes offsets from a start frame;
:class:`Placed` shrinks the step to fit the episode. Beyond the end of a short one the last frame is repeated, by
strategies that choose among frames only where there are fewer frames than they need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ivideogpt.errors import UserError

Indices = NDArray[np.int64]
SegmentKind = Literal["contiguous", "sparse_future", "shuffled", "goal_first", "leading"]


class SegmentStrategy(Protocol):
    def __call__(self, num_frames: int, rng: Generator) -> Indices: ...


def fitting_step(step: int, horizon: int, num_frames: int) -> int:
    """The step itself, or the largest one with which ``horizon`` steps fit into the episode."""
    return step if step * horizon <= num_frames else max(1, num_frames // horizon)


def last_start(num_frames: int, horizon: int, step: int) -> int:
    """The latest frame that a segment of ``horizon`` steps may start at."""
    return max(num_frames - step * horizon, 0)


def repeat_last(indices: Indices, num_frames: int) -> Indices:
    return np.minimum(indices, num_frames - 1)


@dataclass(frozen=True)
class Placed:
    """Offsets placed at a random start: shrinks the step to the episode, and repeats the last frame of a short one.

    Attributes:
        offsets: ``(step, num_frames left from the start on, rng) -> offsets``.
    """

    offsets: Callable[[int, int, Generator], Indices]
    horizon: int
    step: int

    def __call__(self, num_frames: int, rng: Generator) -> Indices:
        step = fitting_step(self.step, self.horizon, num_frames)
        start = rng.integers(last_start(num_frames, self.horizon, step), endpoint=True)
        return repeat_last(start + self.offsets(step, num_frames - int(start), rng), num_frames)


def contiguous(length: int, step: int = 1) -> SegmentStrategy:
    """``length`` frames at distance ``step``."""
    return Placed(partial(_evenly, length=length), length, step)


def sparse_future(length: int, context_length: int, horizon: int, step: int = 1) -> SegmentStrategy:
    """Context frames at distance ``step``, then a sorted random choice among all later native frames of the horizon."""
    return Placed(partial(_sparse, length=length, context_length=context_length, horizon=horizon), horizon, step)


def shuffled(length: int, horizon: int, step: int = 1) -> SegmentStrategy:
    """``length`` distinct frames of the horizon in random order."""
    return Placed(partial(_shuffled, length=length, horizon=horizon), horizon, step)


def goal_first(length: int, step: int = 1) -> SegmentStrategy:
    """``length - 1`` frames at distance ``step``, with a copy of the last one (the goal) in front."""
    return Placed(partial(_goal_first, length=length), length - 1, step)


def leading(length: int) -> SegmentStrategy:
    """The first ``length`` frames."""
    return partial(_leading, length=length)


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


def _evenly(step: int, num_frames: int, rng: Generator, length: int) -> Indices:
    return step * np.arange(length)


def _sparse(step: int, num_frames: int, rng: Generator, length: int, context_length: int, horizon: int) -> Indices:
    context = step * np.arange(context_length)
    first, end = step * context_length, step * horizon
    number = length - context_length
    future = first + _distinct(number, end - first, num_frames - first, rng)
    return np.concatenate([context, np.sort(future)])


def _shuffled(step: int, num_frames: int, rng: Generator, length: int, horizon: int) -> Indices:
    num_reached = -(-num_frames // step)
    return step * _distinct(length, horizon, num_reached, rng)


def _distinct(number: int, horizon: int, num_existing: int, rng: Generator) -> Indices:
    """Draw distinct numbers below `horizon` in random order: those that exist, and beyond them only if they are few."""
    num_existing = max(min(num_existing, horizon), 0)
    if num_existing >= number:
        return rng.choice(num_existing, number, replace=False)
    return rng.permutation(np.concatenate([np.arange(num_existing), np.full(number - num_existing, num_existing)]))


def _goal_first(step: int, num_frames: int, rng: Generator, length: int) -> Indices:
    frames = step * np.arange(length - 1)
    return np.concatenate([frames[-1:], frames])


def _leading(num_frames: int, rng: Generator, length: int) -> Indices:
    return repeat_last(np.arange(length), num_frames)


@dataclass(frozen=True)
class SegmentSpec:
    """What the user asks of a clip. ``horizon`` is for the sparse and shuffled kinds, and defaults to ``length``."""

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
            raise UserError(
                f"segment_horizon {self.horizon} has no room for segment_length {self.length} frames; "
                "raise the horizon or shorten the segment"
            )

    @property
    def num_frames_spanned(self) -> int:
        """Frames that an episode must have for a clip at step 1 that repeats none."""
        match self.kind:
            case "sparse_future" | "shuffled":
                return self.horizon or self.length
            case "goal_first":
                return self.length - 1
            case _:
                return self.length

    def strategy(self, step: int = 1) -> SegmentStrategy:
        horizon = self.horizon or self.length
        match self.kind:
            case "contiguous":
                return contiguous(self.length, step)
            case "sparse_future":
                return sparse_future(self.length, self.context_length, horizon, step)
            case "shuffled":
                return shuffled(self.length, horizon, step)
            case "goal_first":
                return goal_first(self.length, step)
            case "leading":
                return leading(self.length)


def segment_kind(rand_select: bool = False, rand_shuffle: bool = False, goal_conditioned: bool = False) -> SegmentKind:
    """The kind that the historical switches stand for."""
    if rand_select + rand_shuffle + goal_conditioned > 1:
        raise UserError("rand_select, rand_shuffle and goal_conditioned exclude each other; give at most one")
    if rand_select:
        return "sparse_future"
    if rand_shuffle:
        return "shuffled"
    return "goal_first" if goal_conditioned else "contiguous"
