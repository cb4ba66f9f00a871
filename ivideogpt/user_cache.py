"""Where things that can be made again are kept from one command to the next. Knows nothing of the package."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """``~/.cache/ivideogpt``, or where XDG_CACHE_HOME says; None for a user without a home.

    A place that all users share could hold anyone's lists or code.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "ivideogpt") if os.path.isabs(cache) else None
