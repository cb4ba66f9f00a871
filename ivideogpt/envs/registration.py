"""Make environments by the paths of a model and of episodes, as gymnasium's registry does."""

from __future__ import annotations

from typing import Any

import torch

from ivideogpt.devices import choose_device
from ivideogpt.envs.single_env import WorldModelEnv
from ivideogpt.envs.vector_env import WorldModelVectorEnv
from ivideogpt.paths import here_or_in_project
from ivideogpt.world_model import WorldModel


def make_env(pretrained_model_name_or_path: str, contexts: Any, **settings: Any) -> WorldModelEnv:
    """Load a model and make an environment for one episode at a time. Arguments as of :func:`make_vector_env`."""
    return WorldModelEnv(*_load(pretrained_model_name_or_path, contexts, settings), **settings)


def make_vector_env(
    pretrained_model_name_or_path: str, contexts: Any, num_envs: int = 1, **settings: Any
) -> WorldModelVectorEnv:
    """Load a model and make an environment of ``num_envs`` rows.

    Args:
        pretrained_model_name_or_path: folder or hub id of a world model.
        contexts, settings: as :class:`WorldModelVectorEnv` takes them; also ``device`` and ``dtype`` of the model by
            name, both "auto" by default.
    """
    return WorldModelVectorEnv(*_load(pretrained_model_name_or_path, contexts, settings), num_envs, **settings)


def _load(model: str, contexts: Any, settings: dict[str, Any]) -> tuple[WorldModel, Any]:
    """Take the settings of the model out of ``settings`` and load it."""
    device, dtype = choose_device(settings.pop("device", "auto")), settings.pop("dtype", "auto")
    folder = here_or_in_project(model)
    precision = dtype if dtype == "auto" else getattr(torch, dtype)
    loaded = WorldModel.from_pretrained(folder if folder.exists() else model, device, precision)
    return loaded, here_or_in_project(contexts) if isinstance(contexts, str) else contexts
