"""Running converters, and what they have written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ivideogpt.flags import parse


def words(**flags):
    return [str(word) for name, value in flags.items() for word in (f"--{name}", value)]


def run(script, args, **flags):
    """The command in this process, which saves its start."""
    return script.run(parse(args, [*words(**flags), "--num_workers", "1"]))


def episodes(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Everything below a folder, which must hold whole episodes only."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert all(path.suffix == ".npz" for path in files), files
    contents = {}
    for path in files:
        with np.load(path, allow_pickle=False) as arrays:
            contents[str(path.relative_to(folder))] = dict(arrays)
    return contents
