"""List the episode files of a folder. Lists of large folders are cached until the folder changes.

Listing hundreds of thousands of files takes a second on a local disk, but up to minutes over a network. The list is
kept in the user's cache folder, never beside the data, together with the folder's times, which change whenever a file
is added, removed or renamed. (The content of files is not cached: replacing one needs no new list.)
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
from ivideogpt.paths import user_cache

INDEXED_FROM = 5000  # files; smaller folders are listed as fast as an index is read
# Times of file systems are as coarse as 2 s, which may hide a new file, and clocks of servers differ.
SETTLED_AFTER = 60.0  # seconds without a change

logger = logging.getLogger(__name__)


def npz_files(folder: Path) -> list[str]:
    """List the npz files directly inside a folder, sorted, without hidden ones, which are still being written."""
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
    """Return times that change with the folder's entries. Copying tools can restore the first, not the second."""
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _unlistable(folder, error) from error
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _has_settled(state: list[int]) -> bool:
    """Tell whether a later change is sure to be visible. Remote stores without real times return 0 or now."""
    modified, changed, _ = state
    return modified > 0 and time.time_ns() - max(modified, changed) > SETTLED_AFTER * 1e9


def _index_file(folder: Path) -> Path | None:
    cache = user_cache()
    name = hashlib.blake2b(os.fsencode(os.path.realpath(folder)), digest_size=16).hexdigest()
    return None if cache is None else cache / "folders" / f"{name}.json"


def _read(index: Path, folder: Path, state: list[int]) -> list[str] | None:
    """Return the cached list if it matches the folder's current state."""
    try:
        content = json.loads(index.read_text())
        if content["folder"] == os.path.realpath(folder) and content["state"] == state:
            return [name for name in content["names"] if name.endswith(".npz") and "/" not in name]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        logger.info("%s: not an index (%s); listing %s again", index, error, folder)
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
