"""Meta-World tasks as the real world of a game. Needs the extra `mbrl`. For one thread, as OpenGL contexts are."""

from __future__ import annotations

from functools import partial

import numpy as np

from ivideogpt.metadata import ModelMetadata
from ivideogpt.play.starts import Floats, Outcome, Start, StartChoice
from mbrl.envs.env_settings import ACTION_DIM
from mbrl.envs.metaworld_env import MetaWorldEnv

MAX_IDLE = 2
STILL = np.zeros(ACTION_DIM, np.float32)


class Simulators:
    """Starts at tasks, and the simulators of past games, kept for the next one: making one takes a second."""

    def __init__(self, metadata: ModelMetadata) -> None:
        self._metadata = metadata
        self._idle: list[MetaWorldEnv] = []

    def choice(self, task: str) -> StartChoice:
        return StartChoice(f"task:{task}", task, "Real Meta-World tasks", partial(self.start, task))

    def start(self, task: str, seed: int) -> Start:
        """Begin a task: the frame of a reset, then a step without action for each other frame of the context."""
        env = next((env for env in self._idle if env.task == task), None)
        if env is None:
            env = MetaWorldEnv(task, self._metadata.resolution)
        else:
            self._idle.remove(env)
        frames = [env.reset(seed=seed)[0]]
        frames += [env.step(STILL)[0] for _ in range(self._metadata.context_length - 1)]
        return Start(np.stack(frames), np.tile(STILL, (len(frames) - 1, 1)), Simulator(env, self))

    def give_back(self, env: MetaWorldEnv) -> None:
        self._idle.append(env)
        if len(self._idle) > MAX_IDLE:
            self._idle.pop(0).close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


class Simulator:
    """A task under the actions of a game, each of them repeated as in the recordings that models are trained on."""

    def __init__(self, env: MetaWorldEnv, home: Simulators) -> None:
        self._env, self._home = env, home
        self.end = None
        self._scripted = env.scripted_policy()
        self.policies = {"scripted": self._scripted_action}

    def step(self, action: Floats) -> Outcome:
        frame, reward, _, _, info = self._env.step(np.clip(action, -1, 1))
        return Outcome(frame, reward, info["success"])

    def snapshot(self) -> dict[str, np.ndarray]:
        return self._env.snapshot()

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._env.restore(state)

    def close(self) -> None:
        self._home.give_back(self._env)

    def _scripted_action(self) -> Floats:
        return np.clip(self._scripted(), -1, 1).astype(np.float32)
