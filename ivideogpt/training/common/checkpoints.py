"""Checkpoints that all processes of a training run write together. Knows folders and state dicts; knows no model.

A checkpoint's folder holds weights in their published format, ``state.pt`` (what all processes share: optimizers,
schedulers, progress), one ``process_<rank>.pt`` each (random numbers, data position) and ``checksums.json``.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from ivideogpt.errors import UserError, first_line
from ivideogpt.runs.checkpoints import (
    CHECKSUMS,
    SHARED_STATE,
    UNFINISHED,
    begin_checkpoint,
    complete_checkpoints,
    damage_of,
    finish_checkpoint,
    latest_undamaged,
    read_state,
    remove_checkpoint,
)
from ivideogpt.runs.state import Stateful
from ivideogpt.state_dicts import save_state

logger = logging.getLogger(__name__)

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
    shared: Mapping[str, Stateful | None]  # None: no such part in this run
    local: Mapping[str, Stateful | None]
    keep_last: int | None = None

    def save_or_report(self, step: int, must_succeed: bool) -> None:
        """Save as :meth:`save` does, with a line in the log; a failure is only logged, unless it ``must_succeed``."""
        try:
            logger.info("saved %s", self.save(step))
        except SaveError as error:
            if must_succeed:
                raise
            logger.error("%s; going on without", error)

    def save(self, step: int) -> Path:
        """Write everything needed to go on after ``step``. All processes call it.

        If one of them cannot write, all of them raise SaveError; earlier checkpoints are as they were.
        """
        processes = PartialState()
        folder = self.run_directory / f"{self.prefix}{step}"
        unfinished = folder.with_name(UNFINISHED + folder.name)  # in all processes
        failures: list[str] = []
        shared = _state_of(self.shared)  # by all processes: of sharded weights each has a part
        with _noting(failures):
            if processes.is_main_process:
                begin_checkpoint(folder)
                save_state(shared, unfinished / SHARED_STATE)
        processes.wait_for_everyone()
        with _noting(failures):
            save_state(_state_of(self.local), unfinished / _process_file(processes.process_index))
        with _noting(failures):
            self.write_weights(unfinished)
        failures = gather_object(failures)
        with _noting(failures):
            if processes.is_main_process and not failures:
                finish_checkpoint(folder, unfinished)
                if self.keep_last is not None:
                    for old in complete_checkpoints(self.run_directory, self.prefix)[: -self.keep_last]:
                        remove_checkpoint(old)
        failures = gather_object(failures)
        if failures:
            if processes.is_main_process:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise SaveError(f"{folder} could not be saved: {failures[0]}")
        return folder

    def load(self, folder: Path) -> None:
        """Restore everything but the weights, which the model was built from.

        Raises:
            UserError: it was written by another number of processes, or does not fit this run.
        """
        written, running = len(list(folder.glob(_process_file("*")))), PartialState().num_processes
        if written != running:  # with another number the batch is another one
            told = f"{folder} was written by {written} processes, and this run has {running}"
            raise UserError(f"{told}: resume on the same number of processes")
        process_file = folder / _process_file(PartialState().process_index)
        for path, parts in ((folder / SHARED_STATE, self.shared), (process_file, self.local)):
            present = {name: part for name, part in parts.items() if part is not None}
            state = read_state(path, needed=present)
            for name, part in present.items():
                try:
                    part.load_state_dict(state[name])
                except (ValueError, RuntimeError, KeyError) as error:  # other parameters
                    raise UserError(
                        f"{folder}: the {name} that was saved does not fit these flags ({first_line(error)}); resume "
                        "with those of the run, or start a new one from its weights"
                    ) from error


@contextmanager
def _noting(failures: list[str]) -> Iterator[None]:
    """Collect a failed write instead of raising: the other processes are waiting."""
    try:
        yield
    except (OSError, RuntimeError, UserError) as error:  # raised by the writers
        failures.append(str(error) or type(error).__name__)


def find_checkpoint(wanted: str | None, output_dir: Path, exp_name: str, prefix: str) -> Path | None:
    """Find the checkpoint of ``--resume_from_checkpoint``: itself, or a run's undamaged one with the highest step.

    ``latest`` is the newest run ``<date>-<exp_name>`` in ``output_dir`` that has checkpoints, by its date; None, with a
    warning, if there is none yet. A path that holds none, or damaged ones alone, is a UserError.
    """
    if wanted is None:
        return None
    if wanted == "latest":
        named = re.compile(RUN_DATE + re.escape(exp_name))
        runs = sorted(run for run in output_dir.glob("*") if named.fullmatch(run.name))
        for run in reversed(runs):
            if checkpoint := latest_undamaged(run, prefix):
                return checkpoint
            if finals := [*run.glob("*.safetensors")]:
                raise UserError(
                    f"{run} has ended and has no checkpoints any more: its weights are in {finals[0]}; leave "
                    "--resume_from_checkpoint out for a new run"
                )
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
    if checkpoint := latest_undamaged(path, prefix):
        return checkpoint
    raise UserError(f"--resume_from_checkpoint {wanted}: no complete checkpoint there")


def run_directory_of(checkpoint: Path, prefix: str) -> Path:
    """Return the run folder of a checkpoint."""
    return checkpoint.resolve().parents[prefix.count("/")]


def _state_of(parts: Mapping[str, Stateful | None]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items() if part is not None}


def _process_file(rank: int | str) -> str:
    return f"process_{rank}.pt"
