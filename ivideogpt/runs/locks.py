"""Folders that belong to one process at a time. Knows nothing of what is in them."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ivideogpt.errors import UserError

LOCK = "lock"

logger = logging.getLogger(__name__)


_held: set[IO[str]] = set()


@contextmanager
def _closed_in_forks(file: IO[str]) -> Iterator[None]:
    """Keep data workers from holding the lock on: a forked process shares it until the last copy is closed."""
    _held.add(file)
    try:
        yield
    finally:
        _held.remove(file)


def _close_in_fork() -> None:
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_close_in_fork)


def check_not_locked(folder: Path, advice: str) -> None:
    """Check early that no other process holds the folder, before a model is loaded."""
    if (folder / LOCK).exists():
        with locked(folder, advice):
            pass


@contextmanager
def locked(folder: Path, advice: str) -> Iterator[None]:
    """Hold an existing folder for this process. The system lets go of it when the process ends, however it does.

    Args:
        advice: ends the message, e.g. "use another run_dir".

    Raises:
        UserError: another process holds it.
        OSError: the file ``lock`` cannot be written.
    """
    with (folder / LOCK).open("a") as file, _closed_in_forks(file):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is running in {folder}: wait for it, or {advice}") from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no second process there", folder, error.strerror)
        yield
