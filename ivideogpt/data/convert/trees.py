"""Files in a folder and below it, for converters."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path


def files_below(root: Path, suffixes: Collection[str]) -> list[Path]:
    """Files whose names end in one of these (lower-case) suffixes, in order of names; hidden ones are left out.

    Links to folders are followed, unless they lead in circles.
    """
    return [path for path in _walk(root, frozenset()) if path.suffix.lower() in suffixes]


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above or not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        visible = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    for name, is_folder in visible:
        if is_folder:
            yield from _walk(folder / name, above | {real})
        else:
            yield folder / name
