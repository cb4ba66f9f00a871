"""iVideoGPT: an interactive video world model. Importing it is cheap; what is asked for is loaded then."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivideogpt.session import Session
    from ivideogpt.transformer import Sampling
    from ivideogpt.world_model import WorldModel

__version__ = "0.1.0"
__all__ = ["Sampling", "Session", "WorldModel", "__version__"]

_HOME = {"Sampling": "ivideogpt.transformer", "Session": "ivideogpt.session", "WorldModel": "ivideogpt.world_model"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
