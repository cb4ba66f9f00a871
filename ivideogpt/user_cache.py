"""Folder for files that are kept from one command to the next and can be made again. Knows nothing of the package."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """Return ``~/.cache/ivideogpt``, or its place under XDG_CACHE_HOME; None for a user without a home.

    A place that all users share could hold anyone's lists or code.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "ivideogpt") if os.path.isabs(cache) else None
