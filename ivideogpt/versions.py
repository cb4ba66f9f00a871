"""Versions of the packages that a result was made with."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import metadata


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of Python and of these packages; None for one that is not installed."""
    return {"python": sys.version.split()[0]} | {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
