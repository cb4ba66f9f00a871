"""Checkpoints are complete or absent, and found by their meaning."""

import os
import random
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.errors import UserError
from ivideogpt.training.checkpoints import (
    TOKENIZER_CHECKPOINTS,
    TRANSFORMER_CHECKPOINTS,
    Checkpoints,
    RandomState,
    SaveError,
    complete_checkpoints,
    find_checkpoint,
    run_directory_of,
    set_aside_later,
)
from ivideogpt.training.schedule import TrainProgress


def write_weights(folder: Path) -> None:
    (folder / "weights").write_text("all of them")


def checkpoints_of(run: Path, progress: TrainProgress, **options) -> Checkpoints:
    settings = {"write_weights": write_weights, "shared": {"progress": progress}, "local": {"random": RandomState()}}
    return Checkpoints(run, TOKENIZER_CHECKPOINTS, **settings | options)


@contextmanager
def no_room_for_files():
    """The system refuses files of more than a few bytes, as it refuses any on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(1))]


def test_round_trip(tmp_path):
    progress = TrainProgress(step=7, clips=70)
    checkpoints = checkpoints_of(tmp_path, progress)
    folder = checkpoints.save(7)
    expected = draws()
    progress.step = 9
    checkpoints.load(folder)
    assert progress.step == 7
    assert draws() == expected


def test_a_failed_save_leaves_the_previous_one(tmp_path, caplog):
    """A full disk must not cost the run."""
    progress = TrainProgress()
    checkpoints_of(tmp_path, progress).save(1)
    with no_room_for_files(), pytest.raises(SaveError, match=r"checkpoint-2 could not be saved: .*File too large"):
        checkpoints_of(tmp_path, progress).save(2)
    with no_room_for_files():
        checkpoints_of(tmp_path, progress).save_or_report(2, must_succeed=False)
    assert "checkpoint-2 could not be saved" in caplog.text
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-1"]
    checkpoints_of(tmp_path, progress).save(2)
    assert (tmp_path / "checkpoint-2" / "weights").read_text() == "all of them"


def test_saving_the_same_step_again_replaces_it(tmp_path):
    """A resumed run passes steps that it has saved before."""
    progress = TrainProgress(step=1)
    checkpoints_of(tmp_path, progress).save(1)
    progress.clips = 5
    checkpoints = checkpoints_of(tmp_path, progress)
    checkpoints.save(1)
    progress.clips = 0
    checkpoints.load(tmp_path / "checkpoint-1")
    assert progress.clips == 5
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_keep_last(tmp_path):
    """By step, not by name: checkpoint-10 is newer than checkpoint-9."""
    checkpoints = checkpoints_of(tmp_path, TrainProgress(), keep_last=2)
    for step in (8, 9, 10):
        checkpoints.save(step)
    assert [path.name for path in complete_checkpoints(tmp_path, TOKENIZER_CHECKPOINTS)] == [
        "checkpoint-9",
        "checkpoint-10",
    ]


def test_going_back_keeps_the_new_checkpoints(tmp_path):
    """Resumed from an early checkpoint, a run must not take what it wrote later for newer than what it writes now."""
    checkpoints = checkpoints_of(tmp_path, TrainProgress(), keep_last=2)
    for step in (1000, 5000):
        checkpoints.save(step)
    set_aside_later(tmp_path / "checkpoint-1000")
    assert (tmp_path / "rolled-back-checkpoint-5000" / "weights").is_file()
    checkpoints_of(tmp_path, TrainProgress(), keep_last=1).save(1500)
    assert complete_checkpoints(tmp_path, TOKENIZER_CHECKPOINTS) == [tmp_path / "checkpoint-1500"]
    checkpoints.save(5000)
    set_aside_later(tmp_path / "checkpoint-1500")
    assert find_checkpoint(str(tmp_path), tmp_path, "toy", TOKENIZER_CHECKPOINTS) == tmp_path / "checkpoint-1500"


def test_latest_is_the_newest_of_all_runs_of_that_name(tmp_path):
    """Not of runs whose name merely ends in it, and not one that was never finished."""
    names = ["2026-01-01-00:00:00-toy", "2026-01-02-00:00:00-toy", "2026-01-03-00:00:00-other-toy"]
    for age, name in enumerate(names):
        folder = checkpoints_of(tmp_path / name, TrainProgress()).save(5 - age)
        os.utime(folder / "state.pt", (age, age))
    (tmp_path / names[1] / ".unfinished-checkpoint-9").mkdir()
    found = find_checkpoint("latest", tmp_path, "toy", TOKENIZER_CHECKPOINTS)
    assert found == tmp_path / names[1] / "checkpoint-4"
    assert run_directory_of(found, TOKENIZER_CHECKPOINTS) == tmp_path / names[1]
    assert find_checkpoint(str(tmp_path / names[0]), tmp_path, "toy", TOKENIZER_CHECKPOINTS) == (
        tmp_path / names[0] / "checkpoint-5"
    )


def test_latest_without_any_starts_a_new_run(tmp_path, caplog):
    """So that the first start of a job that may be restarted is the same command."""
    assert find_checkpoint("latest", tmp_path / "runs", "toy", TOKENIZER_CHECKPOINTS) is None
    assert "starting a new run" in caplog.text
    with pytest.raises(UserError, match="no complete checkpoint"):
        find_checkpoint(str(tmp_path), tmp_path, "toy", TOKENIZER_CHECKPOINTS)


def test_run_folder_of_a_transformer_checkpoint(tmp_path):
    assert run_directory_of(tmp_path / "checkpoints" / "checkpoint_5", TRANSFORMER_CHECKPOINTS) == tmp_path


def test_other_number_of_processes_is_refused(tmp_path):
    checkpoints = checkpoints_of(tmp_path, TrainProgress())
    folder = checkpoints.save(1)
    (folder / "process_0.pt").unlink()
    with pytest.raises(UserError, match="same number of processes"):
        checkpoints.load(folder)
