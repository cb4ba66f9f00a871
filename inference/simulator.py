"""Meta-World tasks as the real world of a game. Needs the extra `mbrl`."""

from __future__ import annotations

import numpy as np

from ivideogpt.metadata import ModelMetadata
from ivideogpt.play.starts import Floats, Outcome, Start
from mbrl.envs.collection_policies import scripted_policy
from mbrl.envs.env_settings import ACTION_DIM
from mbrl.envs.metaworld_env import MetaWorldEnv

MAX_IDLE = 2  # simulators that are kept for the next game: making one takes a second


class Simulator:
    """A task under the actions of a game, as it was recorded for training: 64 pixels, two simulator steps an action."""

    _idle: list[MetaWorldEnv] = []

    def __init__(self, task: str, size: int) -> None:
        fitting = [env for env in self._idle if (env.task, env.observation_space.shape[0]) == (task, size)]
        self._env = fitting[0] if fitting else MetaWorldEnv(task, size)
        if fitting:
            self._idle.remove(self._env)
        self._expert = scripted_policy(task)
        self.policies = {"scripted": self._scripted_action}

    def reset(self, seed: int) -> np.ndarray:
        frame, _ = self._env.reset(seed=seed)
        return frame

    def step(self, action: Floats) -> Outcome:
        frame, reward, _, _, info = self._env.step(np.clip(action, -1, 1))
        return Outcome(frame, reward, info["success"])

    def snapshot(self) -> dict[str, np.ndarray]:
        return self._env.snapshot()

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._env.restore(state)

    def close(self) -> None:
        self._idle.append(self._env)
        while len(self._idle) > MAX_IDLE:
            self._idle.pop(0).close()

    def _scripted_action(self) -> Floats:
        return np.clip(self._expert(self._env.state), -1, 1).astype(np.float32)


def start_task(task: str, metadata: ModelMetadata, seed: int) -> Start:
    """Begin a task: the frame of a reset, then a step without action for each other frame of the context."""
    world = Simulator(task, metadata.resolution)
    still = np.zeros(ACTION_DIM, np.float32)
    frames = [world.reset(seed)]
    for _ in range(metadata.context_length - 1):
        frame = world.step(still).frame
        assert frame is not None
        frames.append(frame)
    return Start(np.stack(frames), np.zeros((len(frames) - 1, ACTION_DIM), np.float32), world)
