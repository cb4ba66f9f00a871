"""What all converters share, on jobs that need no input."""

from __future__ import annotations

import functools
import os
from dataclasses import replace

import numpy as np
import pytest

from ivideogpt.data.convert.conversion import ConversionArgs, Job, Skipped, check_arrays, write_episode
from ivideogpt.data.convert.workers import worker_pool
from ivideogpt.data.formats.episodes import open_episode
from ivideogpt.errors import UserError

FRAMES = np.zeros((3, 4, 5, 3), np.uint8)


def make(job):
    if job.place % 4 == 3:
        raise UserError("every fourth is bad")
    return {"image": np.full((2, 4, 5, 3), job.place, np.uint8), "action": np.zeros((1, 2), np.float32)}


def jobs(folder, number=6):
    return [Job(folder / f"{i}.npz", f"source {i}", i) for i in range(number)]


def convert(jobs, convert_one, **flags):
    return ConversionArgs(num_workers=1, **flags).convert([jobs], convert_one, "episodes")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_done_and_why_not(tmp_path, capsys):
    """Bug prevented: a bad episode that ends a conversion of days, or that is left out in silence."""
    summary = convert(jobs(tmp_path), make)
    assert (summary.written, summary.existing) == (5, 0)
    assert summary.skipped == (Skipped("source 3", "every fourth is bad"),)
    assert str(summary).splitlines() == [
        "5 episodes written, 0 were there before, 1 skipped",
        "  skipped: source 3: every fourth is bad",
    ]
    assert names(tmp_path) == ["0.npz", "1.npz", "2.npz", "4.npz", "5.npz"]
    assert open_episode(tmp_path / "4.npz").read(np.array([1])).max() == 4
    assert "skipped: source 3: every fourth is bad" in capsys.readouterr().err


def test_resuming_writes_only_what_is_missing(tmp_path):
    convert(jobs(tmp_path, 2), make)
    (tmp_path / "0.npz").unlink()
    (tmp_path / ".0.npz.partial").write_bytes(b"left by a killed process")
    kept = (tmp_path / "1.npz").stat().st_mtime_ns
    summary = convert(jobs(tmp_path, 3), make)
    assert (summary.written, summary.existing) == (2, 1)
    assert (tmp_path / "1.npz").stat().st_mtime_ns == kept
    assert names(tmp_path) == ["0.npz", "1.npz", "2.npz"]


def test_an_output_older_than_a_source_is_made_again(tmp_path):
    """Bug prevented: a corrected table of actions and the same command again, which kept the wrong actions."""
    sources = [tmp_path / "source", tmp_path / "table"]
    for path in sources:
        path.write_text("")
    listing = [replace(job, files=tuple(sources)) for job in jobs(tmp_path / "out", 4)]
    assert convert(listing, make).outdated == 0
    assert convert(listing, make).existing == 3
    for path in sources:
        later = max(job.output.stat().st_mtime for job in listing[:3]) + 1
        os.utime(path, (later, later))
        summary = convert(listing, make)
        assert (summary.written, summary.existing, summary.outdated) == (3, 0, 3)
        assert "0 were there before, 1 skipped; 3 were there, but older than a source" in str(summary)
        os.utime(path, (1, 1))
    os.utime(sources[0], (later + 9, later + 9))
    bad = [replace(job, place=3) for job in listing]
    with pytest.raises(UserError, match="none of 4 episodes"):
        convert(bad, make)
    assert names(tmp_path / "out") == []  # what the sources say no more is not there either
    assert convert(listing, make, shard="1/2").written == 1


def test_the_first_so_many_include_those_that_exist(tmp_path):
    """Bug prevented: the same command converting more and more episodes."""
    for written in (2, 0):
        assert convert(jobs(tmp_path), make, max_num_episodes=2).written == written
    assert names(tmp_path) == ["0.npz", "1.npz"]


def test_shards_together_are_one_run(tmp_path):
    """Bug prevented: jobs of an array that convert an episode twice, or none of them, or the second of one name."""
    listing = [*jobs(tmp_path / "one", 9), Job(tmp_path / "one" / "0.npz", "other", 5)]
    whole = convert(listing, make)
    again = [replace(job, output=tmp_path / "shards" / job.output.name) for job in listing]
    parts = {i: convert(again, make, shard=f"{i}/3") for i in (2, 0, 1)}
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()
    }
    assert [parts[i].written for i in range(3)] == [2, 2, 3]
    assert sum(len(part.skipped) for part in parts.values()) == len(whole.skipped) == 3
    assert str(parts[2]) == "shard 2/3: 3 episodes written, 0 were there before, 0 skipped"


@pytest.mark.parametrize("shard", ["3/3", "1", "-1/2", "0/0", "a/b", "1/2/3"])
def test_shards_that_are_none(shard):
    with pytest.raises(UserError, match="expected i/n with i from 0 to n - 1, such as 0/8 to 7/8"):
        ConversionArgs(shard=shard)


def test_an_error_on_request(tmp_path):
    with pytest.raises(UserError, match="source 3: every fourth is bad; repair it"):
        convert(jobs(tmp_path), make, on_bad_episode="error")
    assert names(tmp_path) == ["0.npz", "1.npz", "2.npz"]


def test_nothing_but_bad_episodes_is_an_error(tmp_path):
    with pytest.raises(UserError, match="none of 1 episodes could be converted; the first: source 3"):
        convert(jobs(tmp_path)[3:4], make)


def test_two_episodes_of_one_name(tmp_path):
    """Bug prevented: the second one taken for the first one's file of an earlier run."""
    for existing in (0, 2):
        summary = convert([*jobs(tmp_path, 2), Job(tmp_path / "0.npz", "other", 5)], make)
        assert summary.existing == existing
        assert [skip.source for skip in summary.skipped] == ["other"]
    assert open_episode(tmp_path / "0.npz").read(np.array([0])).max() == 0


def test_a_place_that_cannot_be_written_ends_the_run(tmp_path):
    """Bug prevented: a full disk counted as a million bad episodes."""
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OSError, match="folder"):
        convert(jobs(tmp_path / "folder"), make)


def test_a_failed_write_leaves_nothing(tmp_path):
    class Unwritable:
        def __array__(self, *args, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_episode(tmp_path / "a.npz", {"image": FRAMES, "action": Unwritable()})
    assert names(tmp_path) == []


def test_compressed_files_are_smaller(tmp_path):
    write = functools.partial(write_episode, arrays={"image": np.zeros((9, 64, 64, 3), np.uint8)})
    write(tmp_path / "a.npz")
    write(tmp_path / "b.npz", compress=True)
    assert (tmp_path / "b.npz").stat().st_size < (tmp_path / "a.npz").stat().st_size / 10


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no camera"),
        ({"image": FRAMES.astype(np.float32)}, "float32"),
        ({"image": FRAMES[..., :1]}, "expected uint8 frames"),
        ({"image": FRAMES[:0]}, "expected uint8 frames"),
        ({"image": FRAMES, "aux": FRAMES[:2]}, r"equally many frames, found \[2, 3\]"),
        ({"image": FRAMES, "action": np.zeros((1, 4))}, r"\(1, 4\) for 3 frames"),
        ({"image": FRAMES, "action": np.zeros((4, 4))}, r"\(4, 4\) for 3 frames"),
        ({"image": FRAMES, "action": np.full((3, 4), np.nan)}, "NaN"),
        ({"image": FRAMES, "action": np.array([None] * 3)}, "Python objects"),
    ],
)
def test_what_loaders_would_refuse_is_not_written(arrays, message):
    with pytest.raises(UserError, match=message):
        check_arrays(arrays)


def test_a_killed_worker_ends_the_pool_with_one_line():
    """The system kills workers for their memory: the traceback of a broken pool said nothing of going on."""
    killed = "a worker process was killed, perhaps for its memory; run again"
    with pytest.raises(UserError, match=killed), worker_pool(2) as run:
        list(run(os._exit, [1] * 20))
