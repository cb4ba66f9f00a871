"""Checkpoints that are complete or absent: folders ``<prefix><step>`` of a run, found by their steps.

A checkpoint is written under another name and renamed when everything is in it, so a run that is killed at any moment
leaves its earlier checkpoints as they were. ``checksums.json`` is written last and lists all files. Listing compares
sizes; a checkpoint that is about to be resumed from is read and compared. Checkpoints of earlier versions have no list:
complete ones have all required files, each of which is checked by itself.
"""

from __future__ import annotations

import logging
import re
import shutil
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from ivideogpt.errors import UserError, first_line
from ivideogpt.files import sync_folder
from ivideogpt.runs.checksums import CHECKSUMS, find_damage, write_checksums
from ivideogpt.state_dicts import tensor_names

logger = logging.getLogger(__name__)

SHARED_STATE = "state.pt"
UNFINISHED = ".unfinished-"
REPLACED = ".unfinished-old-"
SET_ASIDE = "rolled-back-"
REQUIRED = (SHARED_STATE,)


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
    """Read a state file without unpickling anything but tensors.

    Raises:
        UserError: it is damaged, or lacks a part that is needed.
    """
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


def complete_checkpoints(run: Path, prefix: str, required: Collection[str] = REQUIRED) -> list[Path]:
    """Return the checkpoint folders of a run in order of their steps."""
    return [folder for folder in _folders(run, prefix) if _is_complete(folder, required)]


def latest_undamaged(run: Path, prefix: str, required: Collection[str] = REQUIRED) -> Path | None:
    """Return a run's checkpoint to go on from; None if it has none, damaged ones included.

    Raises:
        UserError: all of them are damaged.
    """
    _undo_replacements(run, prefix)
    folders = _folders(run, prefix)
    for folder in reversed(folders):
        damage = damage_of(folder, required)
        if damage is None:
            return folder
        logger.warning("%s is left out, as it is damaged: %s", folder, damage)
    if folders:
        raise UserError(f"{run}: all of its checkpoints are damaged; start a new run")
    return None


def damage_of(checkpoint: Path, required: Collection[str] = REQUIRED) -> str | None:
    """Return what is wrong with the files of a checkpoint, after reading all of them."""
    if (checkpoint / CHECKSUMS).is_file():
        return find_damage(checkpoint)
    for name in required:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    logger.info("%s is from before there were checksums: its files are checked by themselves", checkpoint)
    for file in sorted((*checkpoint.glob("*.pt"), *checkpoint.glob("*.npz"))):
        try:
            with zipfile.ZipFile(file) as archive:  # as torch and NumPy write them: with a CRC of each part
                if archive.testzip() is not None:
                    return f"{file.name} is damaged"
        except (OSError, zipfile.BadZipFile) as error:
            return f"{file.name} cannot be read ({first_line(error)})"
    for file in sorted(checkpoint.rglob("*.safetensors")):
        try:
            tensor_names(file)
        except UserError as error:
            return str(error)
    return None


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


def _is_complete(folder: Path, required: Collection[str]) -> bool:
    if (folder / CHECKSUMS).is_file():
        return find_damage(folder, contents=False) is None
    return all((folder / name).is_file() for name in required)


def _undo_replacements(run: Path, prefix: str) -> None:
    """Put back checkpoints whose replacement (:func:`finish_checkpoint`) was killed between its two renamings."""
    parent, _, last = prefix.rpartition("/")
    for old in (run / parent).glob(f"{REPLACED}{last}*"):
        folder = old.with_name(old.name.removeprefix(REPLACED))
        if not folder.exists():
            old.rename(folder)
