"""A world model as an environment of stable-baselines3, which has an interface of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from ivideogpt.envs.vector_env import WorldModelVectorEnv
from ivideogpt.errors import UserError


class StableBaselinesEnv(VecEnv):
    """A :class:`WorldModelVectorEnv` for ``PPO("CnnPolicy", ...)`` and its like; rows that end begin anew at once."""

    def __init__(self, envs: WorldModelVectorEnv) -> None:
        if envs.settings.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise UserError(f"autoreset_mode is {envs.settings.autoreset_mode}, stable-baselines3 needs SAME_STEP")
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Any:
        """Begin all episodes anew, with the seeds that ``seed`` was given."""
        observations, _ = self.envs.reset(seed=self._seeds)
        self._reset_seeds()
        return observations

    def step_async(self, actions: NDArray[np.floating]) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, NDArray, NDArray, list[dict[str, Any]]]:
        """Return observations, rewards, ends (N,), and an info for each row."""
        observations, rewards, terminations, truncations, infos = self.envs.step(self._actions)
        ended = terminations | truncations
        rows: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in ended.nonzero()[0]:
            rows[row] = {
                "terminal_observation": infos["final_obs"][row],
                "TimeLimit.truncated": bool(truncations[row] and not terminations[row]),
                "is_success": bool(infos["final_info"]["is_success"][row]),
            }
        return observations, rewards.astype(np.float32), ended, rows

    def close(self) -> None:
        self.envs.close()

    def get_images(self) -> list[NDArray[np.uint8]]:
        return list(self.envs.render() or ())

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise UserError(f"{attr_name} cannot be set: the rows are one batch of one world model")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise UserError(f"{method_name} cannot be called for single rows: they are one batch of one world model")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
