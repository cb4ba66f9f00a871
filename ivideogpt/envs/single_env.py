"""A world model as a ``gymnasium.Env``: the vector environment with one row.

Shapes: K frames in a stack, M frames of a start, D action dimension, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import iterate
from numpy.typing import NDArray

from ivideogpt.envs.contexts import Contexts
from ivideogpt.envs.vector_env import RENDER_FPS, Infos, Observation, WorldModelVectorEnv
from ivideogpt.world_model import WorldModel


class WorldModelEnv(gymnasium.Env):
    """Episodes in a world model; the same ones as in row 0 of a vector environment with the same seed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": RENDER_FPS}

    def __init__(self, model: WorldModel, contexts: Contexts | str | Path | NDArray[np.uint8], **settings: Any) -> None:
        """Arguments and errors are those of :class:`WorldModelVectorEnv`."""
        self._row = WorldModelVectorEnv(model, contexts, 1, **settings | {"autoreset_mode": AutoresetMode.DISABLED})
        self.observation_space = self._row.single_observation_space
        self.action_space, self.render_mode = self._row.single_action_space, self._row.render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Infos]:
        """Begin an episode, with ``options["contexts"]`` (1, M, H, W, 3) uint8 if these are given."""
        super().reset(seed=seed)
        observations, infos = self._row.reset(seed=[seed], options=options)
        return self._only(observations), {"is_success": bool(infos["is_success"][0])}

    def step(self, action: NDArray[np.floating]) -> tuple[Observation, float, bool, bool, Infos]:
        """Take an action (D,)."""
        observations, *values, infos = self._row.step(np.asarray(action)[None])
        reward, terminated, truncated = (value[0].item() for value in values)
        return self._only(observations), reward, terminated, truncated, {"is_success": bool(infos["is_success"][0])}

    def render(self) -> NDArray[np.uint8] | None:
        """Return the newest frame (H, W, 3)."""
        frames = self._row.render()
        return None if frames is None else frames[0]

    def _only(self, observations: Observation) -> Observation:
        return next(iter(iterate(self._row.observation_space, observations)))
