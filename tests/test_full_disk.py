"""Every kind of writer on a file system without room: one OSError or UserError, and what was there is as it was."""

from __future__ import annotations

import resource
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from ivideogpt.data.convert.conversion import write_episode
from ivideogpt.data.tokens.token_store import save_array
from ivideogpt.errors import UserError
from ivideogpt.files import append_line, write_json
from ivideogpt.flags import parse
from ivideogpt.runs.trackers import TensorBoard
from ivideogpt.state_dicts import save_state, save_tensors
from ivideogpt.video_io import write_gif, write_png

NOISE = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)  # 480 KB, hardly compressible


@pytest.fixture
def full_disk(tmp_path):
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


WRITERS = {
    "state.pt": lambda path: save_state({"frames": torch.from_numpy(NOISE)}, path),
    "model.safetensors": lambda path: save_tensors({"frames": torch.from_numpy(NOISE)}, path),
    "eps.npz": lambda path: write_episode(path, {"image": NOISE}),
    "small.npz": lambda path: write_episode(path, {"image": NOISE}, compress=True),
    "film.gif": lambda path: write_gif(path, NOISE),
    "sheet.png": lambda path: write_png(path, NOISE.reshape(-1, 64, 3)),
    "note.json": lambda path: write_json(path, {"long": "a" * 200_000}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_error_and_keeps_the_file_before(full_disk, name):
    """torch and safetensors raise errors of their own there, which commands showed as tracebacks."""
    path = full_disk / name
    path.write_bytes(b"before")
    with pytest.raises((OSError, UserError), match=r"No space left|os error 28"):
        WRITERS[name](path)
    assert [(file.name, file.read_bytes()) for file in full_disk.iterdir()] == [(name, b"before")]


def test_a_token_store_without_room_says_why(full_disk):
    """Bug prevented: "491520 requested and 61312 written", and not a word about the disk."""
    save_array(full_disk / "tokens.npy", NOISE[:2])
    np.testing.assert_array_equal(np.load(full_disk / "tokens.npy"), NOISE[:2])
    with pytest.raises(OSError, match="No space left"):
        save_array(full_disk / "tokens.npy", NOISE)


def test_a_recording_that_had_no_room_for_its_note_goes_on(full_disk):
    """recording.json was truncated, and the same command was refused for ever."""
    from tests.datasets.test_record_metaworld import recorder

    config = parse(recorder.RecordArgs, ["--output_path", str(full_disk / "out"), "--tasks", "reach"])
    recorder.prepare_output(config)
    before = (full_disk / "out" / "recording.json").read_bytes()
    filling = full_disk / "filling"
    with pytest.raises(OSError, match="No space"), filling.open("wb") as file:
        file.write(bytes(100_000))
    with pytest.raises(OSError, match=r"No space.*out/recording\.json"):
        recorder.prepare_output(config)
    assert (full_disk / "out" / "recording.json").read_bytes() == before
    filling.unlink()
    recorder.prepare_output(config)


def test_an_unreadable_note_says_what_to_do(tmp_path):
    from tests.datasets.test_record_metaworld import recorder

    Path(tmp_path / "recording.json").write_text("")
    with pytest.raises(UserError, match=r"recording\.json is not valid JSON: .*delete it to go on"):
        recorder.prepare_output(parse(recorder.RecordArgs, ["--output_path", str(tmp_path), "--tasks", "reach"]))


def test_a_line_is_appended_whole_or_not_at_all(full_disk):
    """Half a line of metrics.jsonl took the next line with it."""
    path = full_disk / "metrics.jsonl"
    append_line(path, "a" * 40_000)
    with pytest.raises(OSError, match="No space"):
        append_line(path, "b" * 60_000)
    append_line(path, "c")
    assert path.read_text().splitlines() == ["a" * 40_000, "c"]


def test_tensorboard_goes_on_when_there_is_room_again(full_disk, monkeypatch):
    """Its thread had ended with the first error, which was raised at every later call."""
    monkeypatch.setattr(threading, "excepthook", lambda failed: None)  # as commands do
    folder, rest = full_disk / "logs", full_disk / "rest"
    tracker = TensorBoard(folder, -1)
    tracker.log({"loss": 0.5}, 1)
    with pytest.raises(OSError, match="No space left"):
        rest.write_bytes(NOISE)
    for step in (2, 3, 4):
        with pytest.raises(OSError, match=r"logs: .*No space left"):
            tracker.log_image("frame", Image.fromarray(NOISE[0]), step)
    rest.unlink()
    tracker.log({"loss": 0.25}, 5)
    tracker.close()
    events = [event for file in folder.iterdir() for event in LegacyEventFileLoader(str(file)).Load()]
    assert sorted((event.step, value.tag) for event in events for value in event.summary.value) == [
        (1, "loss"), (5, "loss"),
    ]  # fmt: skip


def test_attempts_of_tensorboard_leave_no_empty_files(tmp_path, monkeypatch):
    """There would be one for each line of a run's log."""
    monkeypatch.setattr(threading, "excepthook", lambda failed: None)  # as commands do
    tracker = TensorBoard(tmp_path, -1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        for step in range(3):
            with pytest.raises(OSError, match="File too large"):
                tracker.log({"loss": 0.5}, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(list(tmp_path.iterdir())) == 1
