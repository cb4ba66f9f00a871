"""A run that is killed while it saves finds the state before, whole, when it starts again."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.errors import UserError
from mbrl.replay import replay_files
from mbrl.replay.replay_buffer import ReplayBuffer
from mbrl.replay.replay_files import Manifest, ReplayFiles
from tests.mbrl.replay.replays import SHAPE, counting_episode, same_samples


class Run:
    """A run that saves as runs do: pieces, then the manifest in place, then what is not needed any more."""

    def __init__(self, folder: Path, capacity: int = 300) -> None:
        self.buffer = ReplayBuffer(capacity, SHAPE)
        self.files = ReplayFiles(folder / "replay", self.buffer)
        self.index = folder / "index.json"
        if self.index.exists():
            self.files.load(Manifest.from_json(json.loads(self.index.read_text())))

    def collect(self, num_episodes: int) -> None:
        for _ in range(num_episodes):
            number = self.buffer.num_added
            self.buffer.add(counting_episode(5 + number % 7, 3 * number % 200), demonstration=number % 5 == 0)

    def save(self, steps: int = 3) -> None:
        """``steps``: how many of the three are done before the process is killed."""
        manifest = self.files.write()
        if steps > 1:
            aside = self.index.with_suffix(".aside")
            aside.write_text(json.dumps(asdict(manifest)))
            aside.replace(self.index)
        if steps > 2:
            self.files.remove_unreferenced(manifest)


def pieces(folder: Path) -> set[str]:
    return {path.name for path in (folder / "replay").iterdir()}


def test_restored_buffer_samples_as_the_saved_one(tmp_path):
    """Also after episodes have left, and into the same future: numbering and held-out episodes go on."""
    run = Run(tmp_path)
    for _ in range(5):
        run.collect(13)
        run.save()
    assert 0 < run.buffer.num_episodes < run.buffer.num_added
    restored = Run(tmp_path)
    assert same_samples(run.buffer, restored.buffer)
    for each in (run, restored):
        each.collect(17)
    assert same_samples(run.buffer, restored.buffer, seed=1)
    assert vars(run.files.write()) == vars(restored.files.write())


def test_only_new_episodes_are_written(tmp_path):
    run = Run(tmp_path, capacity=10_000)
    run.collect(10)
    run.save()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "replay").iterdir()}
    run.collect(3)
    run.save()
    run.save()
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert pieces(tmp_path) == {"episodes-000000000-000000010.npz", "episodes-000000010-000000013.npz"}
    resumed = Run(tmp_path, capacity=10_000)
    resumed.collect(1)
    resumed.save()
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_pieces_are_small_and_leave_with_their_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(replay_files, "PIECE_ROWS", 50)
    run = Run(tmp_path)
    run.collect(30)
    run.save()
    assert len(pieces(tmp_path)) == 5
    run.collect(30)
    run.save()
    rows = sum(len(np.load(path)["num_steps"]) for path in (tmp_path / "replay").iterdir())
    assert run.buffer.num_episodes <= rows < run.buffer.num_episodes + 10
    assert same_samples(run.buffer, Run(tmp_path).buffer)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_killed_between_two_steps_of_saving(tmp_path, steps):
    run = Run(tmp_path)
    run.collect(30)
    run.save()
    before = Run(tmp_path).buffer
    run.collect(25)
    run.save(steps)
    resumed = Run(tmp_path)
    assert same_samples(resumed.buffer, before if steps == 1 else run.buffer)
    resumed.collect(11)  # not what was collected before: the pieces left behind must not be taken for these
    resumed.save()
    assert same_samples(Run(tmp_path).buffer, resumed.buffer)
    assert len(pieces(tmp_path)) == len(resumed.files.write().pieces)


@pytest.mark.parametrize("moment", ["while writing", "before renaming"])
def test_full_disk_keeps_the_saved_state(tmp_path, monkeypatch, moment):
    run = Run(tmp_path)
    run.collect(10)
    run.save()
    saved = pieces(tmp_path)
    before = Run(tmp_path).buffer
    run.collect(10)

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync" if moment == "while writing" else "replace", fail)
        with pytest.raises(OSError, match="No space left on device"):
            run.save()
    assert pieces(tmp_path) == saved
    assert same_samples(Run(tmp_path).buffer, before)
    run.save()
    assert same_samples(Run(tmp_path).buffer, run.buffer)


def test_a_smaller_buffer_keeps_the_newest_episodes(tmp_path):
    run = Run(tmp_path)
    run.collect(30)
    run.save()
    smaller = Run(tmp_path, capacity=40)
    kept = [episode.reward[0] for episode, _ in smaller.buffer.episodes(30 - smaller.buffer.num_episodes, 30)]
    assert kept == [3 * number % 200 for number in range(30 - len(kept), 30)]
    smaller.save()
    assert same_samples(Run(tmp_path, capacity=40).buffer, smaller.buffer)


@pytest.mark.parametrize("damage", ["missing", "cut short", "changed"])
def test_damaged_pieces_are_named(tmp_path, damage):
    run = Run(tmp_path)
    run.collect(10)
    run.save()
    (path,) = (tmp_path / "replay").iterdir()
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut short" else content.replace(b"\xfb", b"\x00"))
    with pytest.raises(UserError, match=path.name):
        Run(tmp_path)
