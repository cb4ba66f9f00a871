"""A ``gymnasium.Env`` as the agent has it: stacked frames, the success bonus, episodes of fixed length.

Shapes: K frames in a stack, H W pixels, L agent steps in an episode. Stacks (3 K, H, W) have the oldest frame first.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from ivideogpt.errors import UserError
from mbrl.envs.played_episode import read_success
from mbrl.replay.episodes import Floats, Pixels, ReplayEpisode

State = dict[str, np.ndarray]  # flat, no objects: np.savez writes it, np.load reads it without pickle
SIMULATOR = "simulator."  # before the keys of the simulator's state


class AgentEnv(gymnasium.Wrapper):
    """Episodes of ``duration`` agent steps, which success does not cut short. Close it after use.

    Where the environment terminates earlier, the last frame stays for the rest of the steps, without reward.

    Observations are stacks (3 K, H, W) uint8, their newest frame last; ``info["success"]`` tells whether any env step
    of an agent step succeeded, which adds the bonus to the reward. The episode so far is part of the state, so the one
    that a restored environment completes is whole.

    Args:
        env: observations are frames (H, W, 3) uint8, actions are in [-1, 1]; its ``info`` holds "success". Runs that
            are saved need its methods ``snapshot`` and ``restore`` like those of `MetaWorldEnv`.
    """

    def __init__(
        self, env: gymnasium.Env, frame_stack: int = 3, duration: int = 100, success_bonus: float = 10.0
    ) -> None:
        super().__init__(env)
        height, width, channels = env.observation_space.shape
        self.observation_space = gymnasium.spaces.Box(0, 255, (frame_stack * channels, height, width), np.uint8)
        self.frame_stack, self.duration, self.success_bonus = frame_stack, duration, success_bonus
        self._frames: list[Pixels] = []  # (3, H, W) each: the start's, and one a step
        self._actions: list[Floats] = []  # one a step, like the rest
        self._rewards: list[float] = []
        self._successes: list[bool] = []
        self._has_terminated = False

    @property
    def num_steps(self) -> int:
        return len(self._actions)

    @property
    def success(self) -> bool:
        """Whether any step of this episode has succeeded so far."""
        return any(self._successes)

    @property
    def stack(self) -> Pixels:
        """Stacked frames (3 K, H, W) after the latest step, a copy."""
        newest = self.num_steps
        return np.concatenate([self._frames[max(newest - age, 0)] for age in reversed(range(self.frame_stack))])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Pixels, dict[str, Any]]:
        """Return the first frame in all places of a stack. What follows is a function of the seed and the actions."""
        frame, info = self.env.reset(seed=seed, options=options)
        self._frames = [channels_first(frame)]
        self._actions, self._rewards, self._successes, self._has_terminated = [], [], [], False
        return self.stack, info

    def step(self, action: Floats) -> tuple[Pixels, float, bool, bool, dict[str, Any]]:
        """Take an action (D,) in [-1, 1]."""
        assert self._frames, "reset comes first"
        assert self.num_steps < self.duration, f"the episode ended after {self.duration} steps: reset comes first"
        action = np.array(action, np.float32)  # as it is stored, so that a replay does the same
        assert action.shape == self.action_space.shape, f"the action has shape {action.shape}"
        assert np.abs(action).max() <= 1, f"action {action} is not in [-1, 1]"
        frame, reward, success = self._frames[-1], 0.0, False
        if not self._has_terminated:
            frame, reward, success = self._step_inside(action)
        self._frames.append(frame)
        self._actions.append(action)
        self._rewards.append(reward)
        self._successes.append(success)
        return self.stack, reward, False, self.num_steps == self.duration, {"success": success}

    def _step_inside(self, action: Floats) -> tuple[Pixels, float, bool]:
        """Step the environment. Returns the frame (3, H, W), the reward with the bonus, and the success."""
        frame, reward, self._has_terminated, truncated, info = self.env.step(action)
        if truncated and self.num_steps + 1 < self.duration:
            done = f"{self.num_steps + 1} of {self.duration}"
            raise UserError(f"the environment cut its episode off after {done} agent steps: ask for shorter episodes")
        success = read_success(info, self.env)
        return channels_first(frame), reward + self.success_bonus * success, success

    def episode(self) -> ReplayEpisode:
        """Return the finished episode."""
        assert self.num_steps == self.duration, f"{self.num_steps} of {self.duration} steps are done"
        return ReplayEpisode(
            frames=np.stack(self._frames),
            earlier=np.repeat(self._frames[0][None], self.frame_stack - 1, axis=0),
            action=np.stack([np.zeros(self.action_space.shape, np.float32), *self._actions]),
            reward=np.array([0.0, *self._rewards], np.float32),
            discount=np.ones(self.num_steps + 1, np.float32),
        )

    def snapshot(self) -> State:
        """Return the state of simulator and episode as arrays for np.savez (1.3 MB at most, at 64 pixels)."""
        return {
            "frames": np.stack(self._frames),
            "actions": np.reshape(self._actions, (-1, *self.action_space.shape)).astype(np.float32),
            "rewards": np.array(self._rewards, np.float64),
            "successes": np.array(self._successes, bool),
            "has_terminated": np.array(self._has_terminated),
            **{SIMULATOR + key: value for key, value in self.env.snapshot().items()},
        }

    def restore(self, state: State) -> None:
        """Continue from a snapshot in the middle of an episode, bit for bit; UserError if it is of another task."""
        self.env.restore({key.removeprefix(SIMULATOR): state[key] for key in state if key.startswith(SIMULATOR)})
        self._frames = list(state["frames"].copy())
        self._actions = list(state["actions"].copy())
        self._rewards, self._successes = state["rewards"].tolist(), state["successes"].tolist()
        self._has_terminated = "has_terminated" in state and bool(state["has_terminated"])  # older ones have none


def channels_first(frame: Pixels) -> Pixels:
    """Transpose (H, W, 3) to (3, H, W), contiguous."""
    return np.ascontiguousarray(frame.transpose(2, 0, 1))
