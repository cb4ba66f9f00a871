"""Paths of the project's own files, wherever a command is run from, and of the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).parents[1]
BUNDLED_MODEL = PROJECT / "pretrained_models" / "ivideogpt-metaworld-64-tiny"

# Weights of metrics, for the user to put there.
LPIPS_FOLDER = "pretrained_models/lpips"
I3D_FILE = "pretrained_models/i3d/i3d_torchscript.pt"


def here_or_in_project(path: str | Path) -> Path:
    """Return the path if it exists, else the path below the project's root, which defaults are relative to."""
    return Path(path) if Path(path).exists() else PROJECT / path


def user_cache() -> Path | None:
    """Return ``~/.cache/ivideogpt``, or its place under XDG_CACHE_HOME; None for a user without a home.

    A place that all users share could hold anyone's lists or code.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "ivideogpt") if os.path.isabs(cache) else None
