"""Folders that belong to one process at a time. Knows nothing of what is in them."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ivideogpt.errors import UserError

LOCK = "lock"

logger = logging.getLogger(__name__)


def check_not_locked(folder: Path, advice: str) -> None:
    """Check early that no other process holds the folder, before a model is loaded."""
    if (folder / LOCK).exists():
        with locked(folder, advice):
            pass


@contextmanager
def locked(folder: Path, advice: str) -> Iterator[None]:
    """Hold an existing folder for this process. The system lets go of it when the process ends, however it does.

    A UserError says if another process holds it, an OSError if the file ``lock`` cannot be written. ``advice`` ends the
    message, e.g. "use another run_dir".
    """
    with (folder / LOCK).open("a") as file:
        os.register_at_fork(after_in_child=file.close)  # a forked data worker shares it, and would hold the lock on
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is running in {folder}: wait for it, or {advice}") from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no second process there", folder, error.strerror)
        yield
