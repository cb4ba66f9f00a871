"""Folders that belong to one process at a time. Knows nothing of what is in them."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ivideogpt.errors import UserError

LOCK = "lock"

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path, advice: str) -> Iterator[None]:
    """Hold an existing folder for this process. The system lets go of it when the process ends, however it does.

    Args:
        advice: ends the message, e.g. "use another run_dir".

    Raises:
        UserError: another process holds it.
        OSError: the file ``lock`` cannot be written.
    """
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is running in {folder}: wait for it, or {advice}") from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no second process there", folder, error.strerror)
        yield
