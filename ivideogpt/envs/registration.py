"""Make environments by the paths of a model and of episodes, as gymnasium's registry does."""

from __future__ import annotations

from typing import Any

from ivideogpt.devices import choose_device
from ivideogpt.envs.single_env import WorldModelEnv
from ivideogpt.envs.vector_env import WorldModelVectorEnv
from ivideogpt.paths import here_or_in_project
from ivideogpt.precision import precision
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
            name, both "auto" by default, and its ``action_space``.
    """
    return WorldModelVectorEnv(*_load(pretrained_model_name_or_path, contexts, settings), num_envs, **settings)


def load_model(
    path_or_hub_id: str, device: str = "auto", dtype: str = "auto", action_space: str | None = None
) -> WorldModel:
    """Load a model by its path, which may begin at the project's root, or hub id."""
    folder = here_or_in_project(path_or_hub_id)
    found = folder if folder.exists() else path_or_hub_id
    return WorldModel.from_pretrained(found, choose_device(device), precision(dtype), action_space=action_space)


def _load(path_or_hub_id: str, contexts: Any, settings: dict[str, Any]) -> tuple[WorldModel, Any]:
    """Load the model, with its own settings, which are taken out of ``settings``; and find the contexts."""
    own = {name: settings.pop(name) for name in ("device", "dtype", "action_space") if name in settings}
    found = here_or_in_project(contexts) if isinstance(contexts, str) else contexts
    return load_model(path_or_hub_id, **own), found
