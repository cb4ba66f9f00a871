"""Play one episode in a ``gymnasium.Env`` of frames.

Shapes: T steps, D action dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from ivideogpt.errors import UserError
from mbrl.replay.episodes import Floats, Pixels

Act = Callable[[list[Pixels]], np.ndarray]  # observations so far -> action (D,), which is clipped to [-1, 1]


@dataclass(frozen=True)
class PlayedEpisode:
    """One played episode."""

    observations: Pixels  # (T + 1, ...) uint8, the first before any action
    actions: Floats  # (T, D) as they were taken
    rewards: np.ndarray  # (T,) float64
    successes: np.ndarray  # (T,) bool

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of an npz episode: T + 1 rows, the last one without an action."""
        results = {"action": self.actions, "reward": self.rewards.astype(np.float32), "success": self.successes}
        after_last = {name: np.concatenate([rows, np.zeros_like(rows[:1])]) for name, rows in results.items()}
        return {"image": self.observations, **after_last}


def play_episode(
    env: gymnasium.Env,
    act: Act,
    seed: int,
    num_steps: int,
    may_end: bool = False,
    state: np.ndarray | None = None,
) -> PlayedEpisode:
    """Play the episode of a seed, of ``num_steps`` steps, or fewer if it may end earlier.

    Args:
        state: where it begins, if not where the seed places things, for environments that have ``reset_to``.

    Raises:
        UserError: an action is not D finite numbers, or the environment ends its episode earlier and may not.
    """
    first, _ = env.reset(seed=seed)
    if state is not None:
        first = env.reset_to(state)
    observations, actions, rewards, successes = [first], [], [], []
    for step in range(1, num_steps + 1):
        action = np.clip(act(observations), -1, 1).astype(np.float32)
        if action.shape != env.action_space.shape or not np.isfinite(action).all():
            raise UserError(f"a policy wants the action {action}, expected {env.action_space.shape[0]} finite numbers")
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
        successes.append(read_success(info, env))
        if (terminated or truncated) and may_end:
            break
        if (terminated or truncated) and step < num_steps:
            raise UserError(f"the environment ended its episode after {step} of {num_steps} agent steps")
    return PlayedEpisode(np.stack(observations), np.stack(actions), np.array(rewards, np.float64), np.array(successes))


def read_success(info: dict[str, Any], env: gymnasium.Env) -> bool:
    """Return whether a step succeeded; UserError if the environment does not say."""
    if "success" not in info:
        raise UserError(f'{type(env).__name__} has no "success" in the info of a step: add whether it succeeded')
    return bool(info["success"])


def check_actions(model: str, action_dim: int | None, action_space: gymnasium.Space) -> None:
    """Raise UserError if the actions of a model, which is named, are not those of an environment."""
    wanted = action_space.shape[0]
    if wanted != action_dim:
        takes = "is action-free" if action_dim is None else f"takes actions of {action_dim} numbers"
        raise UserError(f"{model} {takes}, the environment wants {wanted}: choose a model of its data")
