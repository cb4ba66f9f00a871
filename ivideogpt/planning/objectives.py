"""Objectives of plans: values that add up and scale, such as ``0.5 * SquaredError(goal) + 10 * Classifier(network)``.

All are sums over the planned steps, and higher is better. Shapes: N candidates, H planned steps, C h w pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ivideogpt.errors import UserError
from ivideogpt.planning.dynamics import Futures
from ivideogpt.session import evaluating
from ivideogpt.vq_model import CompressiveVQModel

FRAMES_AT_ONCE = 64  # limit for a network


class Objective(ABC):
    """Score of predicted outcomes."""

    @property
    def reads_frames(self) -> bool:
        """Whether it needs predicted frames: if not, ``SessionDynamics`` may leave them out."""
        return True

    @abstractmethod
    def __call__(self, futures: Futures) -> Tensor:
        """Return the score of each candidate, (N,); UserError if the dynamics does not predict what it needs."""

    def __add__(self, other: Objective) -> Objective:
        return _Sum(self, other)

    def __mul__(self, weight: float) -> Objective:
        return _Scaled(weight, self)

    __rmul__ = __mul__


@dataclass(frozen=True)
class _Sum(Objective):
    first: Objective
    second: Objective

    @property
    def reads_frames(self) -> bool:
        return self.first.reads_frames or self.second.reads_frames

    def __call__(self, futures: Futures) -> Tensor:
        return self.first(futures) + self.second(futures)


@dataclass(frozen=True)
class _Scaled(Objective):
    weight: float
    objective: Objective

    @property
    def reads_frames(self) -> bool:
        return self.objective.reads_frames

    def __call__(self, futures: Futures) -> Tensor:
        return self.weight * self.objective(futures)


@dataclass(frozen=True, eq=False)
class SquaredError(Objective):
    """Negative squared difference from a goal image (C, h, w), summed over steps, pixels and channels."""

    goal: Tensor

    def __call__(self, futures: Futures) -> Tensor:
        frames = _frames(futures)
        _check_goal(self.goal, frames)
        return -(frames - self.goal.to(frames)).square().sum(dim=(1, 2, 3, 4))


@dataclass(frozen=True, eq=False)
class LatentError(Objective):
    """Negative squared distance from a goal image (C, h, w) in the tokenizer's latent space of context frames."""

    tokenizer: CompressiveVQModel
    goal: Tensor

    def __call__(self, futures: Futures) -> Tensor:
        frames = _frames(futures)
        _check_goal(self.goal, frames)
        with torch.no_grad(), evaluating(self.tokenizer):
            goal = self._latents(self.goal[None].to(frames))
            return -_each_frame(lambda some: (self._latents(some) - goal).square().flatten(1).sum(1), frames)

    def _latents(self, frames: Tensor) -> Tensor:
        return self.tokenizer.encode(frames, return_dict=False)[0].float()


@dataclass(frozen=True, eq=False)
class Classifier(Objective):
    """Sum of the logits that a network gives to each frame: ``network`` maps (B, C, h, w) in [0, 1] to (B,) or (B, 1).

    It is moved to the frames' device.
    """

    network: nn.Module

    def __call__(self, futures: Futures) -> Tensor:
        frames = _frames(futures)
        network = self.network.to(frames.device)
        with torch.no_grad(), evaluating(network):
            return _each_frame(lambda some: network(some).flatten(), frames)


@dataclass(frozen=True)
class Reward(Objective):
    """Sum of the rewards that the reward head predicts."""

    reads_frames = False

    def __call__(self, futures: Futures) -> Tensor:
        if futures.rewards is None:
            raise UserError(
                "the model has no reward head: train one with --reward_prediction, or plan for a goal image"
            )
        return futures.rewards.sum(dim=1)


@dataclass(frozen=True)
class Success(Objective):
    """Expected number of successful steps, by the success head."""

    reads_frames = False

    def __call__(self, futures: Futures) -> Tensor:
        if futures.successes is None:
            raise UserError(
                "the model has no success head: train one with --success_prediction, or plan for a goal image"
            )
        return futures.successes.sum(dim=1)


def _frames(futures: Futures) -> Tensor:
    if futures.frames is None:
        raise UserError("the dynamics predicts no frames: plan for rewards or successes")
    return futures.frames


def _check_goal(goal: Tensor, frames: Tensor) -> None:
    if goal.shape != frames.shape[2:]:
        raise UserError(f"the goal has shape {tuple(goal.shape)}, the frames are {tuple(frames.shape[2:])}")


def _each_frame(score: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """Sum the scores (B,) of single frames (B, C, h, w) over the steps of each candidate, (N,)."""
    scores = torch.cat([score(some) for some in frames.flatten(0, 1).split(FRAMES_AT_ONCE)])
    if scores.numel() != frames[:, :, 0, 0, 0].numel():
        raise UserError(
            f"the network gives {scores.numel()} numbers for {len(frames.flatten(0, 1))} frames, not one each"
        )
    return scores.unflatten(0, frames.shape[:2]).sum(dim=1)
