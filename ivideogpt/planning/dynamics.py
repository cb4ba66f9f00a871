"""Predicted outcomes of candidate plans: what planners ask for, and a world model that answers.

Shapes: N candidates, H planned steps, D action dimension, C h w pixels, t context frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ivideogpt.errors import UserError
from ivideogpt.transformer import Sampling
from ivideogpt.world_model import WorldModel


@dataclass(frozen=True)
class Futures:
    """Predicted outcomes of N candidates; what a dynamics does not predict is None.

    Attributes:
        frames: (N, H, C, h, w) in [0, 1], one after each action.
        rewards: (N, H) in environment units.
        successes: (N, H) probabilities.
    """

    frames: Tensor | None = None
    rewards: Tensor | None = None
    successes: Tensor | None = None


class Dynamics(Protocol):
    """Predicts what actions lead to from the present state, which it knows."""

    def __call__(self, actions: Tensor) -> Futures:
        """Predict the outcomes of candidates (N, H, D), whose first action is taken now."""


@dataclass(frozen=True)
class SessionDynamics:
    """Dynamics of a world model. All candidates share the reading of one context.

    Attributes:
        world_model: an action-conditioned one.
        context: (n, C, h, w) in [0, 1], the latest frame last. The last t are shown; where there are fewer than the
            model's t, the first one is repeated.
        seed: of sampling.
        common_noise: all candidates draw the same random numbers, so that they differ by their actions alone and not by
            their places. Without it, a candidate's number decides what it draws.
        max_batch: number of candidates predicted at once; more take several rounds, with the same results.
        sampling: the checkpoint's own if not given.
        with_frames: predict frames, on which most of the time is spent; not needed where no objective reads them.
    """

    world_model: WorldModel
    context: Tensor
    seed: int = 0
    common_noise: bool = True
    max_batch: int = 200
    sampling: Sampling | None = None
    with_frames: bool = True

    def __post_init__(self) -> None:
        if self.world_model.action_dim is None:
            raise UserError("this model is action-free, and planning chooses actions: use an action-conditioned one")
        size = self.world_model.metadata.resolution
        if self.context.ndim != 4 or 0 in self.context.shape or self.context.shape[2:] != (size, size):
            raise UserError(
                f"context has shape {tuple(self.context.shape)}, expected (frames, channels, {size}, {size}) with one "
                "frame at least"
            )
        if self.max_batch < 1:
            raise UserError(f"max_batch is {self.max_batch}, must be at least 1")

    def __call__(self, actions: Tensor) -> Futures:
        """Predict the outcomes of actions (N, H, D); UserError if D is not the model's."""
        if actions.ndim != 3 or actions.shape[-1] != self.world_model.action_dim or 0 in actions.shape:
            raise UserError(
                f"actions have shape {tuple(actions.shape)}, expected (candidates, horizon, action dimension) with "
                f"{self.world_model.action_dim} numbers an action, as the model was trained"
            )
        starts = range(0, len(actions), self.max_batch)
        return _joined([self._predict(actions[first : first + self.max_batch], first) for first in starts])

    def _predict(self, actions: Tensor, first: int) -> Futures:
        rollout = self.world_model.predict(
            self._context()[None],
            actions[None].float(),
            num_samples=len(actions),
            sampling=self.sampling,
            seed=self.seed,
            first_sample=0 if self.common_noise else first,
            common_noise=self.common_noise,
            with_frames=self.with_frames,
        )
        heads = (None if part is None else part[0] for part in (rollout.rewards, rollout.successes))
        return Futures(rollout.frames[0] if self.with_frames else None, *heads)

    def _context(self) -> Tensor:
        length = self.world_model.metadata.context_length
        missing = max(length - len(self.context), 0)
        return torch.cat([self.context[:1].expand(missing, -1, -1, -1), self.context[-length:]])


def _joined(parts: Sequence[Futures]) -> Futures:
    """Join the outcomes of some candidates with those of others."""
    columns = ([getattr(part, name) for part in parts] for name in ("frames", "rewards", "successes"))
    return Futures(*(None if column[0] is None else torch.cat(column) for column in columns))
