"""A world model as an environment of stable-baselines3, which has an interface of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

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


class PixelFeatures(BaseFeaturesExtractor):
    """Features (B, 256) of pictures (B, C, H, W) in [0, 1], for ``policy_kwargs={"features_extractor_class": ...}``.

    The layers of stable-baselines3's own (Mnih et al. 2015) with activations that cannot die, and of one scale: SAC's
    actor may lose all of its ReLUs within a thousand updates, and does the same in every state from then on. Pictures
    have 36 or more pixels a side.
    """

    def __init__(self, observation_space: Box) -> None:
        super().__init__(observation_space, features_dim=256)
        num_channels, height, width = observation_space.shape
        layers: list[nn.Module] = []
        for num_filters, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            layers += [nn.Conv2d(num_channels, num_filters, kernel, stride), nn.SiLU()]
            num_channels = num_filters
            height, width = ((side - kernel) // stride + 1 for side in (height, width))
        head = (nn.Linear(num_channels * height * width, 256), nn.LayerNorm(256), nn.Tanh())
        self.layers = nn.Sequential(*layers, nn.Flatten(), *head)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures - 0.5)
