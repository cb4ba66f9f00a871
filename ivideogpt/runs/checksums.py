"""Folders whose files are written once: ``checksums.json`` holds the size and CRC-32 of each and is written last.

A CRC finds damage, not forgery. It is the fastest checksum of the standard library: 1.2 GB/s where BLAKE2 does 0.4.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from ivideogpt.errors import UserError
from ivideogpt.files import read_json, sync, write_json

CHECKSUMS = "checksums.json"
_CHUNK = 1 << 20


def write_checksums(folder: Path) -> None:
    """Put all files of a folder on the disk, then the list of them: with it the folder is complete."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        sync(path)
    entries = {str(path.relative_to(folder)): {"size": path.stat().st_size, "crc32": _crc(path)} for path in files}
    write_json(folder / CHECKSUMS, {"files": entries})


def find_damage(folder: Path, contents: bool = True) -> str | None:
    """Return what is wrong with a folder that has a list, e.g. "a.pt has other contents than were written".

    Args:
        contents: read the files. Otherwise only their sizes are compared.
    """
    try:
        for name, entry in read_json(folder / CHECKSUMS)["files"].items():
            if damage := _damage_of(folder / name, entry, contents):
                return f"{name} {damage}"
    except (AttributeError, KeyError, TypeError):
        return f"{CHECKSUMS} is no list of files"
    except UserError:
        return f"{CHECKSUMS} cannot be read"
    return None


def _damage_of(path: Path, entry: dict[str, Any], contents: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return f"has {size} bytes, not {entry['size']}"
        return "has other contents than were written" if contents and _crc(path) != entry["crc32"] else None
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _crc(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"
