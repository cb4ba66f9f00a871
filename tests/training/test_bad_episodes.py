"""What the training scripts do about episodes that cannot be used, and about LeRobot folders."""

import logging
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from ivideogpt.data.clips.loaders import WorkerDied
from ivideogpt.errors import UserError
from ivideogpt.runs.checkpoints import step_of
from ivideogpt.training.common.checkpoints import find_checkpoint
from tests.data.formats import lerobot_folder
from tests.training.runs import build_gpt, build_tokenizer, fit, metrics_of, without


@pytest.fixture
def damaged(clips, tmp_path):
    """The clips with one bad episode of three to train on."""
    folder = shutil.copytree(clips, tmp_path / "damaged")
    path = folder / "squares" / "2.npz"
    os.truncate(path, 1000)
    return path


@pytest.mark.parametrize(("script", "num_workers"), [("tokenizer", 0), ("gpt", 1)])
def test_bad_episodes_stop_a_run_or_are_counted_at_its_end(script, num_workers, damaged, request, caplog):
    command = without(request.getfixturevalue(f"{script}_command"), "--dataset_path")
    if script == "gpt":
        command = without(command, "--dataloader_num_workers")
    command += ["--dataset_path", str(damaged.parents[1]), "--dataloader_num_workers", str(num_workers)]
    command += ["--max_train_steps", "5", "--skip_first_val"]
    build = build_tokenizer if script == "tokenizer" else build_gpt
    trainer = build(command)
    with pytest.raises(UserError, match=rf"{damaged}: truncated"):
        fit(trainer)
    if script == "gpt":  # a tokenizer meets it before its first step
        assert find_checkpoint(str(trainer.run.directory), Path(), "toy", trainer.checkpoints.prefix)
    with caplog.at_level(logging.INFO):
        run = fit(build([*command, "--on_bad_episode", "skip", "--cache_mb", "1"]))
    assert metrics_of(run)
    said = [record.message for record in caplog.records]
    assert "skipped 1 bad episodes" in said
    assert any(str(damaged) in line for line in said[said.index("skipped 1 bad episodes") :])


@pytest.mark.parametrize("script", ["tokenizer", "gpt"])
def test_lerobot_folders_are_trained_on_as_they_are(script, tmp_path, request):
    folder = lerobot_folder.write_folder(tmp_path / "so100")
    command = without(request.getfixturevalue(f"{script}_command"), "--dataset_path", "--oxe_data_mixes_type")
    command += ["--dataset_path", f"lerobot:{folder}", "--max_train_steps", "2"]
    if script == "gpt":
        command += ["--action_conditioned", "--action_dim", "3", "--reward_prediction"]
    assert metrics_of(fit((build_tokenizer if script == "tokenizer" else build_gpt)(command)))


@pytest.mark.parametrize("script", ["tokenizer", "gpt"])
def test_a_killed_data_worker_ends_the_run_after_a_checkpoint(script, request, monkeypatch):
    """The system kills workers for their memory: a traceback, and everything since the last checkpoint was lost."""
    command = request.getfixturevalue(f"{script}_command")
    if script == "gpt":
        command = without(command, "--dataloader_num_workers")
    build = build_tokenizer if script == "tokenizer" else build_gpt
    command += ["--dataloader_num_workers", "1", "--max_train_steps", "30", "--skip_first_val"]
    trainer = build([*command, "--validation_steps", "1000"])
    after_step = trainer.after_step

    def killing(step: int) -> None:
        after_step(step)
        if step == 2:
            for worker in multiprocessing.active_children():  # of earlier tests, too
                os.kill(worker.pid, signal.SIGKILL)

    monkeypatch.setattr(trainer, "after_step", killing)
    with pytest.raises(WorkerDied, match="a data worker was killed, perhaps for its memory"):
        fit(trainer)
    step = trainer.progress.step
    assert 2 <= step < 30
    found = find_checkpoint(str(trainer.run.directory), Path(), "toy", trainer.checkpoints.prefix)
    assert step_of(found) == step
    more = [*command, "--validation_steps", "1000", "--max_train_steps", str(step + 1)]
    resumed = build([*more, "--resume_from_checkpoint", str(found)])
    fit(resumed)
    assert resumed.progress.clips == trainer.progress.clips + resumed.clips_per_update
