"""Autopilots by name. To add one, add a line to the table: its label, and a function from the game to an action.

An autopilot returns None where it has nothing to say; the page then does not offer it, or stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ivideogpt.data.clips.transforms import channels_first
from ivideogpt.errors import UserError
from ivideogpt.play.game import Game
from ivideogpt.play.planner import planned_action
from ivideogpt.play.starts import Floats

STRETCH = 6  # steps in one direction


@dataclass(frozen=True)
class Autopilot:
    """``act`` returns an action (D,), or None where there is none at the shown moment."""

    label: str
    act: Callable[[Game], Floats | None]
    is_offered: Callable[[Game], bool] = lambda game: game.action_dim > 0


def policy_of_real_world(name: str, label: str) -> Autopilot:
    return Autopilot(label, lambda game: game.policy_action(name), lambda game: name in game.policies)


def policy_on_frames(label: str, act: Callable[[Tensor], Tensor], frame_stack: int) -> Autopilot:
    """Return an autopilot from a function of stacks (n, 3 K, H, W) uint8, oldest frame first, to actions (n, D)."""

    def action(game: Game) -> Floats:
        stack = channels_first(game.latest(frame_stack)).flatten(0, 1)
        return act(stack[None])[0].clamp(-1, 1).float().cpu().numpy()

    return Autopilot(label, action)


def random_action(game: Game) -> Floats:
    """Return an action that changes every few steps, and is the same whenever the moment is visited."""
    rng = np.random.default_rng([game.seed % 2**32, game.position // STRETCH])
    return game.from_controls(rng.uniform(-1, 1, game.action_dim).astype(np.float32))


AUTOPILOTS = {
    "recorded": policy_of_real_world("recorded", "Recorded actions"),
    "scripted": policy_of_real_world("scripted", "Scripted expert"),
    "random": Autopilot("Random", random_action),
    "mppi": Autopilot("Planner", planned_action),
}


def autopilot_action(game: Game, name: str) -> Floats:
    """Return the action of an autopilot.

    Raises:
        UserError: there is no such autopilot here, or it has come to its end.
    """
    pilot = AUTOPILOTS.get(name)
    if pilot is None or not pilot.is_offered(game):
        raise UserError(f"there is no autopilot {name!r} here")
    action = pilot.act(game)
    if action is None:
        raise UserError(f"{pilot.label}: nothing more, the recording has ended")
    return action
