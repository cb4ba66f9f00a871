"""Paths of the project's own files, wherever a command is run from, and of the user's cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).parents[1]
BUNDLED_MODEL = PROJECT / "pretrained_models" / "ivideogpt-metaworld-64-tiny"

# Weights of metrics, for the user to put there.
LPIPS_FOLDER = "pretrained_models/lpips"
I3D_FILE = "pretrained_models/i3d/i3d_torchscript.pt"


def here_or_in_project(path: str | Path) -> Path:
    """Return the path if it exists, else the path below the project's root, which defaults are relative to."""
    return Path(path) if Path(path).exists() else PROJECT / path


def split_paths(listed: str, exists: Callable[[str], bool] = os.path.exists) -> list[str]:
    """Split a list of paths at commas, except commas in the name of what exists; empty parts are left out."""
    words, paths = listed.split(","), list[str]()
    while words:
        joined = (",".join(words[:number]) for number in range(1, len(words) + 1))
        path = next((path for path in joined if path and exists(path)), words[0])
        words = words[path.count(",") + 1 :]
        paths.append(path)
    return [path for path in paths if path]


def folder_name(dataset: str) -> str:
    """Return the last folder of a data set's name, such as ``<org>/<name>@<camera>``, without the choices after it."""
    return dataset.partition("@")[0].rstrip("/").rpartition("/")[2]


def user_cache() -> Path | None:
    """Return ``~/.cache/ivideogpt``, or its place under XDG_CACHE_HOME; None for a user without a home.

    A place that all users share could hold anyone's lists or code.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "ivideogpt") if os.path.isabs(cache) else None
