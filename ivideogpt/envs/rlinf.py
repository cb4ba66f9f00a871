"""A world model as an environment of RLinf's trainers, which act in chunks: tensors in and out.

Shapes: N rows, M frames of a start, T steps of a chunk, D action dimension, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.envs.vector_env import Infos, WorldModelVectorEnv
from ivideogpt.errors import UserError

IMAGES, TASKS = "main_images", "task_descriptions"
Observation = dict[str, Any]  # main_images (N, H, W, 3) uint8; task_descriptions, a text for each row


def rlinf_settings(auto_reset: bool = True) -> dict[str, Any]:
    """Return the settings of a :class:`WorldModelVectorEnv` that an :class:`RLinfEnv` needs."""
    mode = AutoresetMode.NEXT_STEP if auto_reset else AutoresetMode.DISABLED
    return {"observation_key": IMAGES, "autoreset_mode": mode}


class RLinfEnv:
    """A :class:`WorldModelVectorEnv` that also keeps a text for each row, which the world model does not read.

    Observations have no ``states``: the world model has no proprioception.

    Attributes:
        is_start: whether no episode has begun yet; trainers may set it.
    """

    def __init__(self, envs: WorldModelVectorEnv) -> None:
        if envs.settings.observation_key != IMAGES:
            raise UserError(f"observation_key is {envs.settings.observation_key!r}, RLinf's trainers need {IMAGES!r}")
        self.envs, self.num_envs, self.is_start = envs, envs.num_envs, True
        self.task_descriptions = [envs.task] * envs.num_envs

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        reset_mask: Tensor | NDArray[np.bool_] | None = None,
        contexts: Tensor | NDArray[np.uint8] | None = None,
        task_descriptions: Sequence[str] | None = None,
    ) -> tuple[Observation, Infos]:
        """Begin all episodes anew, or those of some rows.

        Args:
            seed: as of :meth:`WorldModelVectorEnv.reset`.
            reset_mask: (N,) rows that begin anew.
            contexts: frames (rows that begin anew, M, H, W, 3) to begin with; else recorded ones are sampled.
            task_descriptions: texts of the rows that begin anew; else they keep theirs.

        Raises:
            UserError: something has another shape or type. Episodes then go on as before.
        """
        numbers = range(self.num_envs) if reset_mask is None else np.flatnonzero(_on_cpu(reset_mask)).tolist()
        if task_descriptions is not None and len(task_descriptions) != len(numbers):
            raise UserError(f"{len(task_descriptions)} task_descriptions were given for {len(numbers)} rows")
        given = {"reset_mask": reset_mask, "contexts": contexts}
        options = {name: _on_cpu(value) for name, value in given.items() if value is not None}
        observations, _ = self.envs.reset(seed=seed, options=options)
        for number, text in zip(numbers, task_descriptions or ()):
            self.task_descriptions[number] = text
        self.is_start = False
        return self._with_tasks({IMAGES: torch.from_numpy(observations[IMAGES]).to(self.envs.model.device)}), {}

    def step(self, actions: Tensor) -> tuple[Observation, Tensor, Tensor, Tensor, Infos]:
        """Take actions (N, D), as a chunk of one step."""
        observations, rewards, terminations, truncations, infos = self.chunk_step(actions[:, None])
        return observations[0], rewards[:, 0], terminations[:, 0], truncations[:, 0], infos[0]

    def chunk_step(self, actions: Tensor) -> tuple[list[Observation], Tensor, Tensor, Tensor, list[Infos]]:
        """Take actions (N, T, D), as :meth:`WorldModelVectorEnv.chunk_step` does."""
        observations, rewards, terminations, truncations, infos = self.envs.chunk_step(actions)
        if "final_obs" in infos[-1]:
            infos[-1]["final_obs"] = self._with_tasks(infos[-1]["final_obs"])
        return [self._with_tasks(each) for each in observations], rewards, terminations, truncations, infos

    def close(self) -> None:
        self.envs.close()

    @property
    def elapsed_steps(self) -> Tensor:
        return self.envs.elapsed_steps

    @property
    def auto_reset(self) -> bool:
        return self.envs.auto_reset

    @property
    def ignore_terminations(self) -> bool:
        return self.envs.ignore_terminations

    def _with_tasks(self, observation: Observation) -> Observation:
        return {**observation, TASKS: list(self.task_descriptions)}


def _on_cpu(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else value
