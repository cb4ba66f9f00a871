"""Check that a command may write to its folder before hours of work, not after."""

from __future__ import annotations

import os
from pathlib import Path

from ivideogpt.errors import UserError


def check_folder_can_be_written(folder: Path, flag: str) -> None:
    """Check that a folder exists or can be created, and is writable. Creates nothing.

    Raises:
        UserError: the path is not a folder, cannot become one, or is not writable.
    """
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not existing.is_dir():
        raise UserError(f"{flag}: {existing} is a file, expected a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag}: nothing can be written to {existing}: name another folder")
