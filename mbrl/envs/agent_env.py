"""An environment as the agent has it: stacked frames, the success bonus, episodes of fixed length.

Shapes: K frames in a stack, H W pixels, L agent steps in an episode. Stacks (3 K, H, W) have the oldest frame first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mbrl.envs.metaworld_env import ACTION_DIM, MetaWorldEnv
from mbrl.envs.simulator_state import State
from mbrl.replay.episodes import Floats, Pixels, ReplayEpisode

SIMULATOR = "simulator."  # before the keys of the simulator's state


@dataclass(frozen=True)
class EnvSettings:
    """All that an environment depends on; it travels to worker processes, each of which makes its own."""

    task: str
    image_size: int = 64
    action_repeat: int = 2
    camera: str = "corner"
    paper_reward: bool = True
    frame_stack: int = 3
    duration: int = 100
    success_bonus: float = 10.0

    def make(self) -> AgentEnv:
        env = MetaWorldEnv(self.task, self.image_size, self.action_repeat, self.camera, self.paper_reward)
        return AgentEnv(env, self.frame_stack, self.duration, self.success_bonus)


@dataclass(frozen=True)
class AgentStep:
    """
    Attributes:
        stack: (3 K, H, W) uint8, its newest frame being ``frame`` (3, H, W).
        reward: of all env steps, success bonus included.
        success: whether any env step reported it.
        last: the episode has ended; reset before the next step.
    """

    stack: Pixels
    frame: Pixels
    reward: float
    success: bool
    last: bool


class AgentEnv:
    """Episodes of ``duration`` agent steps, which success does not cut short. Close it after use.

    The episode so far is part of the state, so the one that a restored environment completes is whole.
    """

    def __init__(
        self, env: MetaWorldEnv, frame_stack: int = 3, duration: int = 100, success_bonus: float = 10.0
    ) -> None:
        self.env = env
        self.frame_stack, self.duration, self.success_bonus = frame_stack, duration, success_bonus
        self._frames: list[Pixels] = []  # (3, H, W) each: the start's, and one a step
        self._actions: list[Floats] = []  # one a step, like the rest
        self._rewards: list[float] = []
        self._successes: list[bool] = []

    @property
    def num_steps(self) -> int:
        """Steps done in this episode."""
        return len(self._actions)

    @property
    def success(self) -> bool:
        """Whether any step of this episode has succeeded so far."""
        return any(self._successes)

    @property
    def stack(self) -> Pixels:
        """(3 K, H, W) after the latest step, a copy."""
        newest = self.num_steps
        return np.concatenate([self._frames[max(newest - age, 0)] for age in reversed(range(self.frame_stack))])

    def reset(self, seed: int) -> Pixels:
        """(3 K, H, W): the first frame in all places. What follows is a function of this seed and the actions."""
        self._frames = [channels_first(self.env.reset(seed))]
        self._actions, self._rewards, self._successes = [], [], []
        return self.stack

    def step(self, action: Floats) -> AgentStep:
        """
        Args:
            action: (4,) in [-1, 1].
        """
        assert self._frames, "reset comes first"
        assert self.num_steps < self.duration, f"the episode ended after {self.duration} steps: reset comes first"
        action = np.array(action, np.float32)  # as it is stored, so that a replay does the same
        assert action.shape == (ACTION_DIM,), f"the action has shape {action.shape}"
        assert np.abs(action).max() <= 1, f"action {action} is not in [-1, 1]"
        step = self.env.step(action)
        frame, reward = channels_first(step.frame), step.reward + self.success_bonus * step.success
        self._frames.append(frame)
        self._actions.append(action)
        self._rewards.append(reward)
        self._successes.append(step.success)
        return AgentStep(self.stack, frame, reward, step.success, last=self.num_steps == self.duration)

    def episode(self) -> ReplayEpisode:
        """The finished one."""
        assert self.num_steps == self.duration, f"{self.num_steps} of {self.duration} steps are done"
        return ReplayEpisode(
            frames=np.stack(self._frames),
            earlier=np.repeat(self._frames[0][None], self.frame_stack - 1, axis=0),
            action=np.stack([np.zeros(ACTION_DIM, np.float32), *self._actions]),
            reward=np.array([0.0, *self._rewards], np.float32),
            discount=np.ones(self.num_steps + 1, np.float32),
        )

    def snapshot(self) -> State:
        """The simulator, and the episode so far (1.3 MB at most, at 64 pixels): arrays that np.savez takes."""
        return {
            "frames": np.stack(self._frames),
            "actions": np.reshape(self._actions, (-1, ACTION_DIM)).astype(np.float32),
            "rewards": np.array(self._rewards, np.float64),
            "successes": np.array(self._successes, bool),
            **{SIMULATOR + key: value for key, value in self.env.snapshot().items()},
        }

    def restore(self, state: State) -> None:
        """Go on as the environment of which it is a snapshot would have, in the middle of its episode.

        Raises:
            UserError: it belongs to another task.
        """
        self.env.restore({key.removeprefix(SIMULATOR): state[key] for key in state if key.startswith(SIMULATOR)})
        self._frames = list(state["frames"].copy())
        self._actions = list(state["actions"].copy())
        self._rewards, self._successes = state["rewards"].tolist(), state["successes"].tolist()

    def close(self) -> None:
        self.env.close()


def channels_first(frame: Pixels) -> Pixels:
    """(H, W, 3) -> (3, H, W), contiguous."""
    return np.ascontiguousarray(frame.transpose(2, 0, 1))
