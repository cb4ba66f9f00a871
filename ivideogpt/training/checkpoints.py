"""Checkpoints that are complete or absent. Knows folders and state dicts; knows no model and no loss.

A checkpoint is written under another name and renamed when everything is in it, so a run that is killed at any moment
leaves its earlier checkpoints as they were. Its folder holds weights in their published format, ``state.pt`` (what all
processes share: optimizers, schedulers, progress) and one ``process_<rank>.pt`` each (random numbers, data position).
State files are read with ``torch.load(weights_only=True)``: nothing is unpickled.
"""

from __future__ import annotations

import logging
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError

from ivideogpt.errors import UserError

logger = logging.getLogger(__name__)

SHARED_STATE = "state.pt"
UNFINISHED = ".unfinished-"
SET_ASIDE = "rolled-back-"
RUN_DATE = r"\d{4}-\d\d-\d\d-\d\d:\d\d:\d\d-"

# Name prefixes of a run's checkpoints, relative to its folder: the published layouts of both training scripts.
TOKENIZER_CHECKPOINTS = "checkpoint-"
TRANSFORMER_CHECKPOINTS = "checkpoints/checkpoint_"


class SaveError(UserError):
    """A checkpoint could not be written."""


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


class RandomState:
    """This process's global generators, as one piece of state."""

    def state_dict(self) -> dict[str, Any]:
        name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
        return {
            "python": random.getstate(),
            "numpy": (name, torch.tensor(np.asarray(keys, np.int64)), position, has_gauss, gauss),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, internal, gauss_next = state["python"]
        random.setstate((version, tuple(internal), gauss_next))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])


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
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
                _write(shared, unfinished / SHARED_STATE)
        processes.wait_for_everyone()
        with _noting(failures):
            _write(_state_of(self.local), unfinished / _process_file(processes.process_index))
        with _noting(failures):
            self.write_weights(unfinished)
        failures = gather_object(failures)
        if failures:
            if processes.is_main_process:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise SaveError(f"{folder} could not be saved: {failures[0]}")
        if processes.is_main_process:
            _replace(folder, unfinished)
            self._forget_old_ones()
        processes.wait_for_everyone()
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
            state = torch.load(path, map_location="cpu", weights_only=True)
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
                shutil.rmtree(folder)


@contextmanager
def _noting(failures: list[str]) -> Iterator[None]:
    """Take note of a failed write instead of raising: the other processes are waiting."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, UserError) as error:  # of writers
        failures.append(str(error) or type(error).__name__)


def complete_checkpoints(run_directory: Path, prefix: str) -> list[Path]:
    """Checkpoint folders of a run in order of their steps."""
    folders = [path for path in run_directory.glob(f"{prefix}*") if (path / SHARED_STATE).is_file()]
    return sorted(folders, key=step_of)


def set_aside_later(checkpoint: Path) -> None:
    """Rename the later checkpoints of a run that goes back to ``checkpoint``: they are no part of it any more."""
    prefix = checkpoint.name.rstrip("0123456789")
    for folder in complete_checkpoints(checkpoint.parent, prefix):
        if step_of(folder) > step_of(checkpoint):
            aside = folder.with_name(SET_ASIDE + folder.name)
            logger.warning("going back to %s: %s is set aside as %s", checkpoint.name, folder.name, aside.name)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def step_of(folder: Path) -> int:
    match = re.search(r"(\d+)$", folder.name)
    if match is None:
        raise UserError(f"{folder} is no checkpoint folder: its name does not end in a step")
    return int(match.group(1))


def find_checkpoint(wanted: str | None, output_dir: Path, exp_name: str, prefix: str) -> Path | None:
    """What ``--resume_from_checkpoint`` means: a checkpoint, a run's newest one, or the newest one of all runs.

    ``latest`` looks at the runs ``<date>-<exp_name>`` in ``output_dir``; None, with a warning, if there is none yet.

    Raises:
        UserError: a path holds no complete checkpoint.
    """
    if wanted is None:
        return None
    if wanted == "latest":
        runs = output_dir.iterdir() if output_dir.is_dir() else ()
        named = re.compile(RUN_DATE + re.escape(exp_name))
        found = [folder for run in runs if named.fullmatch(run.name) for folder in complete_checkpoints(run, prefix)]
        if not found:
            logger.warning("no checkpoint of %s in %s to resume from: starting a new run", exp_name, output_dir)
        return max(found, key=lambda folder: (folder / SHARED_STATE).stat().st_mtime, default=None)
    path = Path(wanted)
    if (path / SHARED_STATE).is_file():
        return path
    found = complete_checkpoints(path, prefix)
    if not found:
        raise UserError(f"--resume_from_checkpoint {wanted}: no complete checkpoint there")
    return found[-1]


def run_directory_of(checkpoint: Path, prefix: str) -> Path:
    """The run folder that a checkpoint lies in."""
    return checkpoint.resolve().parents[prefix.count("/")]


def _state_of(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}


def _write(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # opened here, its errors are the system's; torch's own name no reason
        torch.save(state, file)


def _process_file(rank: int) -> str:
    return f"process_{rank}.pt"


def _replace(folder: Path, finished: Path) -> None:
    """Give ``finished`` its final name. A resumed run comes past steps that it has saved before."""
    old = folder.with_name(UNFINISHED + "old-" + folder.name)
    if folder.exists():
        folder.rename(old)
    finished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
