"""Checkpoints are complete or absent, and found by their meaning."""

import logging
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.errors import UserError
from ivideogpt.runs.checkpoints import complete_checkpoints, set_aside_later
from ivideogpt.runs.state import RandomState
from ivideogpt.state_dicts import save_tensors
from ivideogpt.training.common.checkpoints import (
    TOKENIZER_CHECKPOINTS,
    TRANSFORMER_CHECKPOINTS,
    Checkpoints,
    SaveError,
    find_checkpoint,
    run_directory_of,
)
from ivideogpt.training.common.schedule import TrainProgress


def write_weights(folder: Path) -> None:
    (folder / "weights").write_text("all of them")


def checkpoints_of(run: Path, progress: TrainProgress, **options) -> Checkpoints:
    settings = {"write_weights": write_weights, "shared": {"progress": progress}, "local": {"random": RandomState()}}
    return Checkpoints(run, TOKENIZER_CHECKPOINTS, **settings | options)


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


def test_a_failed_save_leaves_the_previous_one(tmp_path, caplog, no_room_for_files):
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
    shutil.copy(folder / "process_0.pt", folder / "process_1.pt")
    with pytest.raises(UserError, match=r"written by 2 processes, and this run has 1: .* same number of processes"):
        checkpoints.load(folder)  # it trained on with half the batch
    for rank in range(2):
        (folder / f"process_{rank}.pt").unlink()
    with pytest.raises(UserError, match="same number of processes"):
        checkpoints.load(folder)


# ---- damage


def three(run: Path) -> list[Path]:
    checkpoints = checkpoints_of(run, TrainProgress(), write_weights=write_tensors)
    return [checkpoints.save(step) for step in (8, 9, 10)]


def write_tensors(folder: Path) -> None:
    save_tensors({"weight": torch.ones(1000)}, folder / "model.safetensors")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "state cut short": ("state.pt", truncate),
    "state missing": ("state.pt", Path.unlink),
    "random numbers cut short": ("process_0.pt", truncate),
    "random numbers missing": ("process_0.pt", Path.unlink),
    "weights cut short": ("model.safetensors", truncate),
    "weights changed": ("model.safetensors", change_a_byte),
    "list cut short": ("checksums.json", truncate),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_a_line_and_the_one_before(tmp_path, caplog, damage):
    """A power failure's last checkpoint stopped every resumption with a traceback, or was loaded as it was."""
    name, spoil = DAMAGES[damage]
    run = tmp_path / "2026-01-01-00:00:00-toy"
    *_, before, last = three(run)
    spoil(last / name)
    assert find_checkpoint("latest", tmp_path, "toy", TOKENIZER_CHECKPOINTS) == before
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith(f"{last} is left out, as it is damaged: {name}")
    with pytest.raises(UserError, match=rf"checkpoint-10 is damaged: {name}|no complete checkpoint"):
        find_checkpoint(str(last), tmp_path, "toy", TOKENIZER_CHECKPOINTS)
    for folder in complete_checkpoints(run, TOKENIZER_CHECKPOINTS):
        truncate(folder / "state.pt")
    with pytest.raises(UserError, match="all of its checkpoints are damaged"):
        find_checkpoint("latest", tmp_path, "toy", TOKENIZER_CHECKPOINTS)


def test_latest_is_the_highest_step_and_not_the_newest_time(tmp_path):
    """Copying a run, or looking into an old checkpoint with a tool that touches it, changed what was resumed."""
    run = tmp_path / "2026-01-01-00:00:00-toy"
    first, _, last = three(run)
    os.utime(last / "state.pt", (0, 0))
    os.utime(first / "state.pt")
    shutil.copytree(first, run / "checkpoint-99-backup")
    assert find_checkpoint("latest", tmp_path, "toy", TOKENIZER_CHECKPOINTS) == last


def test_checkpoints_without_checksums_load(tmp_path):
    """Those of earlier versions; without their state they are no checkpoints."""
    *_, before, last = three(tmp_path)
    for folder in (before, last):
        (folder / "checksums.json").unlink()
    for named in (tmp_path, last):
        assert find_checkpoint(str(named), tmp_path, "toy", TOKENIZER_CHECKPOINTS) == last
    checkpoints_of(tmp_path, TrainProgress()).load(last)
    (last / "state.pt").unlink()
    assert find_checkpoint(str(tmp_path), tmp_path, "toy", TOKENIZER_CHECKPOINTS) == before
    with pytest.raises(UserError, match="no complete checkpoint there"):
        find_checkpoint(str(last), tmp_path, "toy", TOKENIZER_CHECKPOINTS)


class Killed(BaseException):
    """No ``except Exception`` sees it, as none sees SIGKILL."""


def kill(*_, **__):
    raise Killed


def test_a_removal_that_was_killed_leaves_nothing_under_the_name(tmp_path, monkeypatch):
    """Half of a checkpoint counted as one, as its state.pt was removed last."""
    checkpoints = checkpoints_of(tmp_path, TrainProgress(), keep_last=1)
    checkpoints.save(1)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda path, **_: kill() if path.exists() else None)
        with pytest.raises(Killed):
            checkpoints.save(2)
    assert complete_checkpoints(tmp_path, TOKENIZER_CHECKPOINTS) == [tmp_path / "checkpoint-2"]
    checkpoints.save(3)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_replacement_that_was_killed_is_undone(tmp_path, monkeypatch):
    """A resumed run saves its first step again: between two renames there was no checkpoint of that step."""
    progress = TrainProgress(step=1, clips=7)
    checkpoints = checkpoints_of(tmp_path, progress)
    folder = checkpoints.save(1)
    rename = Path.rename
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", lambda path, to: kill() if to == folder else rename(path, to))
        with pytest.raises(Killed):
            checkpoints.save(1)
    assert not folder.exists()
    assert find_checkpoint(str(tmp_path), tmp_path, "toy", TOKENIZER_CHECKPOINTS) == folder
    progress.clips = 0
    checkpoints.load(folder)
    assert progress.clips == 7
