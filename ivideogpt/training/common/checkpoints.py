"""Checkpoints that are complete or absent. Knows folders and state dicts; knows no model and no loss.

A checkpoint is written under another name and renamed when everything is in it, so a run that is killed at any moment
leaves its earlier checkpoints as they were. Its folder holds weights in their published format, ``state.pt`` (what all
processes share: optimizers, schedulers, progress), one ``process_<rank>.pt`` each (random numbers, data position) and
``checksums.json``. Listing compares sizes; a checkpoint that is about to be resumed from is read and compared.
State files are read with ``torch.load(weights_only=True)``: nothing is unpickled.
"""

from __future__ import annotations

import logging
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ivideogpt.errors import UserError, first_line
from ivideogpt.files import sync_folder
from ivideogpt.runs.checksums import CHECKSUMS, find_damage, write_checksums
from ivideogpt.runs.state import Stateful
from ivideogpt.state_dicts import save_state, tensor_names

logger = logging.getLogger(__name__)

SHARED_STATE = "state.pt"
UNFINISHED = ".unfinished-"
REPLACED = ".unfinished-old-"
SET_ASIDE = "rolled-back-"
RUN_DATE = r"\d{4}-\d\d-\d\d-\d\d:\d\d:\d\d-"

# Name prefixes of a run's checkpoints, relative to its folder: the published layouts of both training scripts.
TOKENIZER_CHECKPOINTS = "checkpoint-"
TRANSFORMER_CHECKPOINTS = "checkpoints/checkpoint_"


class SaveError(UserError):
    """A checkpoint could not be written."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    ``write_weights(folder)`` writes the weights; ``shared`` is the same in all processes, ``local`` is each one's own.
    """

    run_directory: Path
    prefix: str
    write_weights: Callable[[Path], None]
    shared: Mapping[str, Stateful]
    local: Mapping[str, Stateful]
    keep_last: int | None = None

    def save_or_report(self, step: int, must_succeed: bool) -> None:
        """As :meth:`save`, with a line in the log. A failure is no more than that, unless it ``must_succeed``."""
        try:
            logger.info("saved %s", self.save(step))
        except SaveError as error:
            if must_succeed:
                raise
            logger.error("%s; going on without", error)

    def save(self, step: int) -> Path:
        """Write everything needed to go on after ``step``. All processes call it.

        Raises:
            SaveError: in all processes, if one of them could not write. Earlier checkpoints are as they were.
        """
        processes = PartialState()
        folder = self.run_directory / f"{self.prefix}{step}"
        unfinished = folder.with_name(UNFINISHED + folder.name)
        failures: list[str] = []
        shared = _state_of(self.shared)  # by all processes: of sharded weights each has a part
        with _noting(failures):
            if processes.is_main_process:
                for left in unfinished.parent.glob(f"{UNFINISHED}*"):  # by a killed process: the run is ours alone
                    shutil.rmtree(left, ignore_errors=True)
                unfinished.mkdir(parents=True)
                save_state(shared, unfinished / SHARED_STATE)
        processes.wait_for_everyone()
        with _noting(failures):
            save_state(_state_of(self.local), unfinished / _process_file(processes.process_index))
        with _noting(failures):
            self.write_weights(unfinished)
        failures = gather_object(failures)
        with _noting(failures):
            if processes.is_main_process and not failures:
                write_checksums(unfinished)
                _replace(folder, unfinished)
                self._forget_old_ones()
        failures = gather_object(failures)
        if failures:
            if processes.is_main_process:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise SaveError(f"{folder} could not be saved: {failures[0]}")
        return folder

    def load(self, folder: Path) -> None:
        """Bring back everything but the weights, which the model was built from."""
        process_file = folder / _process_file(PartialState().process_index)
        if not process_file.is_file():
            raise UserError(
                f"{folder} was written by fewer processes than the {PartialState().num_processes} of this run: "
                "resume on the same number of processes"
            )
        for path, parts in ((folder / SHARED_STATE, self.shared), (process_file, self.local)):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # whatever torch makes of a damaged file
                raise UserError(f"{path} cannot be read: {first_line(error)}") from error
            if missing := parts.keys() - state.keys():
                raise UserError(
                    f"{folder} lacks {', '.join(sorted(missing))}, which this run needs; resume it with the flags that "
                    "it was begun with, or start a new run from its weights"
                )
            for name, part in parts.items():
                part.load_state_dict(state[name])

    def _forget_old_ones(self) -> None:
        if self.keep_last is not None:
            for folder in complete_checkpoints(self.run_directory, self.prefix)[: -self.keep_last]:
                _remove(folder)


@contextmanager
def _noting(failures: list[str]) -> Iterator[None]:
    """Take note of a failed write instead of raising: the other processes are waiting."""
    try:
        yield
    except (OSError, RuntimeError, UserError) as error:  # of writers
        failures.append(str(error) or type(error).__name__)


def complete_checkpoints(run_directory: Path, prefix: str) -> list[Path]:
    """Checkpoint folders of a run in order of their steps."""
    return [folder for folder in _folders(run_directory, prefix) if _is_complete(folder)]


def _folders(run_directory: Path, prefix: str) -> list[Path]:
    """Return what has the name of a checkpoint, damaged ones included, in order of their steps."""
    last = Path(prefix).name
    found = (path for path in run_directory.glob(f"{prefix}*") if path.name.removeprefix(last).isdecimal())
    return sorted(found, key=step_of)


def _is_complete(folder: Path) -> bool:
    """Are all files there, as long as they were written? Older checkpoints have no list of them."""
    if (folder / CHECKSUMS).is_file():
        return find_damage(folder, contents=False) is None
    return (folder / SHARED_STATE).is_file()


def damage_of(checkpoint: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint, after reading all of them."""
    if (checkpoint / CHECKSUMS).is_file():
        return find_damage(checkpoint)
    if not (checkpoint / SHARED_STATE).is_file():
        return f"{SHARED_STATE} is missing"
    logger.info("%s is from before there were checksums: its files are checked by themselves", checkpoint)
    for file in sorted(checkpoint.glob("*.pt")):
        try:
            with zipfile.ZipFile(file) as archive:  # as torch writes them: with a CRC of each part
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
            aside = folder.with_name(SET_ASIDE + folder.name)
            logger.warning("going back to %s: %s is set aside as %s", checkpoint.name, folder.name, aside.name)
            _remove(aside)
            folder.rename(aside)


def step_of(folder: Path) -> int:
    match = re.search(r"(\d+)$", folder.name)
    if match is None:
        raise UserError(f"{folder} is no checkpoint folder: its name does not end in a step")
    return int(match.group(1))


def find_checkpoint(wanted: str | None, output_dir: Path, exp_name: str, prefix: str) -> Path | None:
    """What ``--resume_from_checkpoint`` means: a checkpoint, or the undamaged one of a run with the highest step.

    ``latest`` is the newest run ``<date>-<exp_name>`` in ``output_dir`` that has checkpoints, by its date; None, with a
    warning, if there is none yet.

    Raises:
        UserError: a path holds no complete checkpoint, the one that was named is damaged, or all of a run are.
    """
    if wanted is None:
        return None
    if wanted == "latest":
        named = re.compile(RUN_DATE + re.escape(exp_name))
        runs = sorted(run for run in output_dir.glob("*") if named.fullmatch(run.name))
        for run in reversed(runs):
            if checkpoint := _latest_undamaged(run, prefix):
                return checkpoint
        logger.warning("no checkpoint of %s in %s to resume from: starting a new run", exp_name, output_dir)
        return None
    path = Path(wanted)
    if (path / SHARED_STATE).is_file() or (path / CHECKSUMS).is_file():
        if damage := damage_of(path):
            raise UserError(
                f"--resume_from_checkpoint {wanted} is damaged: {damage}; name another one, or the run's folder for "
                "its latest undamaged one"
            )
        return path
    if checkpoint := _latest_undamaged(path, prefix):
        return checkpoint
    raise UserError(f"--resume_from_checkpoint {wanted}: no complete checkpoint there")


def _latest_undamaged(run: Path, prefix: str) -> Path | None:
    """Return a run's checkpoint to go on from; None if it has none, damaged ones included."""
    _put_back(run, prefix)
    folders = _folders(run, prefix)
    for folder in reversed(folders):
        damage = damage_of(folder)
        if damage is None:
            return folder
        logger.warning("%s is left out, as it is damaged: %s", folder, damage)
    if folders:
        raise UserError(f"{run}: all of its checkpoints are damaged; start a new run")
    return None


def _put_back(run: Path, prefix: str) -> None:
    """Undo a replacement of a checkpoint (:func:`_replace`) that was killed between its two steps."""
    for old in run.glob(str(Path(prefix).with_name(f"{REPLACED}{Path(prefix).name}*"))):
        folder = old.with_name(old.name.removeprefix(REPLACED))
        if not folder.exists():
            old.rename(folder)


def run_directory_of(checkpoint: Path, prefix: str) -> Path:
    """The run folder that a checkpoint lies in."""
    return checkpoint.resolve().parents[prefix.count("/")]


def _state_of(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}


def _process_file(rank: int) -> str:
    return f"process_{rank}.pt"


def _replace(folder: Path, finished: Path) -> None:
    """Give ``finished`` its final name. A resumed run comes past steps that it has saved before."""
    old = folder.with_name(REPLACED + folder.name)
    if folder.exists():
        folder.rename(old)
    finished.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a checkpoint. Killed in between, none of it is left under its name."""
    if folder.exists():
        doomed = folder.with_name(UNFINISHED + folder.name)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
