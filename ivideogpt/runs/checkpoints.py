"""Checkpoints that are complete or absent: folders ``<prefix><step>`` of a run, found by their steps.

A checkpoint is written under another name and renamed when everything is in it, so a run that is killed at any moment
leaves its earlier checkpoints as they were. ``checksums.json`` is written last and lists all files. Listing compares
sizes; a checkpoint that is about to be resumed from is read and compared. A CRC finds damage, not forgery. It is the
fastest checksum of the standard library: 1.2 GB/s where BLAKE2 does 0.4.
"""

from __future__ import annotations

import logging
import re
import shutil
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from ivideogpt.errors import UserError, first_line
from ivideogpt.files import read_json, sync, sync_folder, write_json

logger = logging.getLogger(__name__)

SHARED_STATE = "state.pt"
CHECKSUMS = "checksums.json"
UNFINISHED = ".unfinished-"
REPLACED = ".unfinished-old-"
SET_ASIDE = "rolled-back-"
_CHUNK = 1 << 20


def begin_checkpoint(folder: Path) -> Path:
    """Return an empty folder to write a checkpoint into. What killed processes left of others is removed."""
    unfinished = folder.with_name(UNFINISHED + folder.name)
    for left in folder.parent.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def finish_checkpoint(folder: Path, unfinished: Path) -> None:
    """List the files and give the checkpoint its name. A resumed run replaces steps that it has saved before."""
    write_checksums(unfinished)
    old = folder.with_name(REPLACED + folder.name)
    if folder.exists():
        folder.rename(old)
    unfinished.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_state(file: Path, needed: Collection[str] = (), mmap: bool = False) -> dict[str, Any]:
    """Read a state file without unpickling anything but tensors; UserError if it is damaged or lacks a needed part."""
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # whatever torch makes of a damaged file
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error
    if missing := set(needed) - state.keys():
        raise UserError(
            f"{file.parent} lacks {', '.join(sorted(missing))}, which this run needs; resume it with the settings that "
            "it was begun with, or start a new run from its weights"
        )
    return state


def complete_checkpoints(run: Path, prefix: str) -> list[Path]:
    """Return the checkpoint folders of a run in order of their steps."""
    return [folder for folder in _folders(run, prefix) if damage_of(folder, contents=False) is None]


def latest_undamaged(run: Path, prefix: str) -> Path | None:
    """Return a run's checkpoint to go on from; None if it has none. UserError if all of them are damaged."""
    parent, _, last = prefix.rpartition("/")
    for old in (run / parent).glob(f"{REPLACED}{last}*"):  # finish_checkpoint was killed between its two renamings
        if not (folder := old.with_name(old.name.removeprefix(REPLACED))).exists():
            old.rename(folder)
    folders = _folders(run, prefix)
    for folder in reversed(folders):
        if not (damage := damage_of(folder)):
            return folder
        logger.warning("%s is left out, as it is damaged: %s", folder, damage)
    if folders:
        raise UserError(f"{run}: all of its checkpoints are damaged; start a new run")
    return None


def write_checksums(folder: Path) -> None:
    """Put all files of a folder on the disk, then the list of them: with it the folder is complete."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        sync(path)
    entries = {str(path.relative_to(folder)): {"size": path.stat().st_size, "crc32": _crc(path)} for path in files}
    write_json(folder / CHECKSUMS, {"files": entries})


def damage_of(checkpoint: Path, contents: bool = True) -> str | None:
    """Return what is wrong with a checkpoint's files, e.g. "a.pt has other contents than were written".

    Without ``contents`` only their sizes are compared. Checkpoints of earlier versions have no list of their files.
    """
    if not (checkpoint / CHECKSUMS).exists():
        return None if (checkpoint / SHARED_STATE).is_file() else f"{CHECKSUMS} is missing"
    try:
        for name, entry in read_json(checkpoint / CHECKSUMS)["files"].items():
            if damage := _damage_of_file(checkpoint / name, entry, contents):
                return f"{name} {damage}"
    except (AttributeError, KeyError, TypeError):
        return f"{CHECKSUMS} is no list of files"
    except UserError:
        return f"{CHECKSUMS} cannot be read"
    return None


def _damage_of_file(path: Path, entry: dict[str, Any], contents: bool) -> str | None:
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


def set_aside_later(checkpoint: Path) -> None:
    """Rename the later checkpoints of a run that goes back to ``checkpoint``: they are no part of it any more."""
    prefix = checkpoint.name.rstrip("0123456789")
    for folder in complete_checkpoints(checkpoint.parent, prefix):
        if step_of(folder) > step_of(checkpoint):
            renamed = folder.with_name(SET_ASIDE + folder.name)
            logger.warning("going back to %s: %s is set aside as %s", checkpoint.name, folder.name, renamed.name)
            remove_checkpoint(renamed)
            folder.rename(renamed)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint. Killed in between, none of it is left under its name."""
    if folder.exists():
        doomed = folder.with_name(UNFINISHED + folder.name)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def step_of(folder: Path) -> int:
    match = re.search(r"(\d+)$", folder.name)
    if match is None:
        raise UserError(f"{folder} is no checkpoint folder: its name does not end in a step")
    return int(match.group(1))


def _folders(run: Path, prefix: str) -> list[Path]:
    """Return what has the name of a checkpoint, damaged ones included, in order of their steps."""
    last = prefix.rpartition("/")[2]
    found = (path for path in run.glob(f"{prefix}*") if path.name.removeprefix(last).isdecimal())
    return sorted(found, key=step_of)
