"""Running converters, and what they have written."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from ivideogpt.data.convert.conversion import NOTE
from ivideogpt.flags import parse


def words(**flags):
    words = [(f"--{name}", *(value if isinstance(value, tuple) else (value,))) for name, value in flags.items()]
    return [str(word) for each in words for word in each]


def run(script, args, **flags):
    """The command in this process, which saves its start."""
    return script.run(parse(args, [*words(**flags), "--num_workers", "1"]))


def make_newer(source: Path) -> None:
    """Let a file look as if it had been changed just now, and whatever is made of it from now on newer still."""
    time.sleep(0.01)  # longer than a tick of the file system
    os.utime(source)


def episodes(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Everything below a folder, which must hold whole episodes only, and the note of the settings."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NOTE)
    assert all(path.suffix == ".npz" for path in files), files
    contents = {}
    for path in files:
        with np.load(path, allow_pickle=False) as arrays:
            contents[str(path.relative_to(folder))] = dict(arrays)
    return contents
