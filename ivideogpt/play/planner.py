"""Autopilot that plans: MPPI in the dream, towards the goal frame of a game or, without one, for predicted reward.

Candidates are imagined in sessions of their own: that of the game stays where it is. Shapes: N candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ivideogpt.data.clips.transforms import channels_first, unit_range
from ivideogpt.errors import UserError
from ivideogpt.planning import MPPI, Futures, Objective, Plan, Planner, Reward, SessionDynamics, SquaredError
from ivideogpt.play.game import Game, Settings
from ivideogpt.play.starts import Floats
from ivideogpt.video_io import Pixels

HORIZON, REPLAN_EVERY = 4, 2


@dataclass(frozen=True, eq=False)
class GamePlan:
    """A plan, and what it was made for: a moment of a sample, a goal, and how the model samples."""

    plan: Plan
    position: int
    dream: Pixels
    goal: Pixels | None
    selected: int
    settings: Settings

    def num_executed(self, game: Game) -> int | None:
        """Count the planned actions that led to the shown moment; None if others did, or something else has changed."""
        taken = [moment.action for moment in game.moments[self.position + 1 : game.position + 1]]
        is_ahead = self.position > game.position or game.moments[self.position].dream is not self.dream
        is_others = self.goal is not game.goal or (self.selected, self.settings) != (game.selected, game.settings)
        if is_ahead or is_others or len(taken) >= len(self.plan.actions):
            return None
        return len(taken) if all(map(np.array_equal, taken, self.plan.actions.numpy())) else None


@dataclass(frozen=True)
class Standardised(Objective):
    """Scores in standard deviations of the candidates: one gamma of MPPI fits rewards and pixels of any size."""

    objective: Objective

    @property
    def reads_frames(self) -> bool:
        return self.objective.reads_frames

    def __call__(self, futures: Futures) -> Tensor:
        scores = self.objective(futures)
        return (scores - scores.mean()) / scores.std().clamp(min=1e-6)


def planned_action(game: Game) -> Floats:
    """Return the next action of the game's plan, which is made anew every few steps from where the last one was.

    Raises:
        UserError: the model predicts no reward, and no goal frame was chosen.
    """
    planned: GamePlan | None = game.plan
    executed = None if planned is None else planned.num_executed(game)
    if planned is None or executed is None or executed >= REPLAN_EVERY:
        previous = None if planned is None or executed is None else planned.plan
        plan = make_plan(game, previous, executed or 0)
        game.plan = planned = GamePlan(plan, game.position, game.now.dream, game.goal, game.selected, game.settings)
        executed = 0
    return planned.plan.actions[executed].numpy()


def make_plan(game: Game, previous: Plan | None, executed: int) -> Plan:
    """Search for good actions from the shown frame of the selected sample."""
    context = unit_range(channels_first(game.context(game.selected)))
    sampling, scores = game.settings.sampling(game.model.metadata.generation), Standardised(objective(game))
    with_frames = scores.reads_frames
    dynamics = SessionDynamics(game.model, context, game.seed, sampling=sampling, with_frames=with_frames)
    generator = torch.Generator().manual_seed(game.seed + game.position)
    return planner(*game.model.action_bounds).plan(dynamics, scores, generator, previous, executed)


def planner(low: Floats, high: Floats) -> Planner:
    """Return a planner with few candidates, and more of them where the first are quick: a page must stay lively."""
    return MPPI(
        low=tuple(low.tolist()), high=tuple(high.tolist()), init_std=tuple(((high - low) / 4).tolist()),
        horizon=HORIZON, smoothing=0.8, gamma=3.0, num_candidates=6, num_iterations=4, max_seconds=0.4,
    )  # fmt: skip


def objective(game: Game) -> Objective:
    """Return the goal frame if one was chosen, else the predicted reward."""
    if game.goal is not None:
        return SquaredError(unit_range(channels_first(game.goal[None]))[0])
    if game.model.reward_head is None:
        raise UserError("the planner has no goal: go to a frame that you like, and make it the goal")
    return Reward()
