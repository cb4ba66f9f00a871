"""The episode files of a folder. Large folders are listed once, and again when they have changed.

Listing hundreds of thousands of files takes a second on a local disk, but up to minutes over a network. The list is
kept in the user's cache folder, never beside the data, together with the times that the file system notes whenever a
file is added, removed or renamed. (What is inside a file is not remembered: replacing one needs no new list.)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ivideogpt.errors import UserError
from ivideogpt.files import write_json
from ivideogpt.user_cache import user_cache

INDEXED_FROM = 5000  # files; fewer are listed as fast as an index is read
# Clocks of file systems tick in steps of up to 2 s, within which a file may appear unnoticed, and servers' run apart.
SETTLED_AFTER = 60.0  # seconds without a change

logger = logging.getLogger(__name__)


def npz_files(folder: Path) -> list[str]:
    """The npz files directly inside a folder, sorted by name. Hidden ones are files still being written."""
    prefix = os.path.join(folder, "")
    return [prefix + name for name in _npz_names(folder)]


def has_npz_files(folder: Path) -> bool:
    return any(True for _ in _scan(folder))


def _npz_names(folder: Path) -> list[str]:
    index, state = _index_file(folder), _state(folder)
    indexed = _read(index, folder, state) if index else None
    if indexed is not None:
        logger.info("%s: %d episodes, listed in %s", folder, len(indexed), index)
        return indexed
    names = sorted(_scan(folder))
    if index and len(names) >= INDEXED_FROM and _has_settled(state) and state == _state(folder):
        _write(index, folder, state, names)
    return names


def _scan(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".npz") and not entry.name.startswith("."):
                    yield entry.name
    except OSError as error:
        raise _unlistable(folder, error) from error


def _state(folder: Path) -> list[int]:
    """Differs when the folder's entries do. Copying tools set the first time back, but cannot set the second."""
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _unlistable(folder, error) from error
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _has_settled(state: list[int]) -> bool:
    """Whether a later change is sure to show. Remote stores without times of their own say 0 or now."""
    modified, changed, _ = state
    return modified > 0 and time.time_ns() - max(modified, changed) > SETTLED_AFTER * 1e9


def _index_file(folder: Path) -> Path | None:
    cache = user_cache()
    name = hashlib.blake2b(os.fsencode(os.path.realpath(folder)), digest_size=16).hexdigest()
    return None if cache is None else cache / "folders" / f"{name}.json"


def _read(index: Path, folder: Path, state: list[int]) -> list[str] | None:
    """The list, if it was made of the folder as it is now."""
    try:
        content = json.loads(index.read_text())
        if content["folder"] == os.path.realpath(folder) and content["state"] == state:
            return [name for name in content["names"] if name.endswith(".npz") and "/" not in name]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        logger.info("%s: not an index (%s); listing %s anew", index, error, folder)
    return None


def _write(index: Path, folder: Path, state: list[int], names: list[str]) -> None:
    content = {"folder": os.path.realpath(folder), "state": state, "names": names}
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        write_json(index, content, indent=None)
    except OSError as error:
        logger.info("%s is listed at every start: %s cannot be written (%s)", folder, index, error.strerror)


def _unlistable(folder: Path, error: OSError) -> UserError:
    reason = (error.strerror or str(error)).lower()
    return UserError(f"{folder}: cannot be listed ({reason}); expected a folder of .npz episodes")
