"""A world model as an environment: a core of torch, and on it gymnasium's interfaces, registered on import."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ivideogpt.errors import require

if TYPE_CHECKING:
    from ivideogpt.envs.client import RemoteEnv
    from ivideogpt.envs.contexts import Contexts, GivenContexts, RecordedContexts
    from ivideogpt.envs.imagination import Imagination
    from ivideogpt.envs.single_env import WorldModelEnv
    from ivideogpt.envs.vector_env import WorldModelVectorEnv

__all__ = [
    "Contexts", "GivenContexts", "Imagination", "RecordedContexts", "RemoteEnv", "WorldModelEnv",
    "WorldModelVectorEnv",
]  # fmt: skip

_HOME = {
    "Contexts": "contexts",
    "GivenContexts": "contexts",
    "Imagination": "imagination",
    "RecordedContexts": "contexts",
    "RemoteEnv": "client",
    "WorldModelEnv": "single_env",
    "WorldModelVectorEnv": "vector_env",
}
_REGISTERED = {
    "ivideogpt/world-model-v0": {},
    "ivideogpt/metaworld-tiny-v0": {
        "pretrained_model_name_or_path": "pretrained_models/ivideogpt-metaworld-64-tiny",
        "contexts": "inference/samples",
    },
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOME[name].endswith("_env"):
        require("gymnasium", extra="envs")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def _register() -> None:
    import gymnasium

    for name, kwargs in _REGISTERED.items():
        home = f"{__name__}.registration"
        gymnasium.register(name, f"{home}:make_env", vector_entry_point=f"{home}:make_vector_env", kwargs=kwargs)


if find_spec("gymnasium"):
    _register()
