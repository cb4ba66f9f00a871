"""Small files that other processes, kills and full disks must never leave half-written."""

import errno
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from ivideogpt.errors import UserError
from ivideogpt.files import (
    PARTIAL_SUFFIX,
    KeptRows,
    atomic_file,
    atomic_folder,
    atomic_path,
    check_folder_can_be_written,
    partial_path,
    read_json,
    remove_abandoned,
    write_json,
)


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    """A full disk truncated recording.json, after which the recorder refused to go on."""
    path = tmp_path / "note.json"
    write_json(path, {"a": 1})
    with pytest.raises(OSError, match="full"), atomic_file(path, "w") as file:  # noqa: PT012
        file.write("{")
        raise OSError("the disk is full")
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["note.json"]


def test_two_writers_do_not_share_a_temporary_name(tmp_path):
    """Two converters at once left a broken file under its final name."""
    path = tmp_path / "eps.npz"
    with atomic_file(path) as first:
        first.write(b"first")
        with atomic_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert partial_path(path) != partial_path(path)
    assert partial_path(path).name.endswith(PARTIAL_SUFFIX)


def test_nan_is_not_written(tmp_path):
    """metrics.jsonl held NaN, which no JSON reader but Python's takes."""
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing; record it again"),
        (b"", "is not valid JSON"),
        (b'{"a": ', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (json.dumps([1]).encode(), "must hold one JSON object, and holds a list"),
        (b"null", "holds null"),
    ],
)
def test_whatever_a_file_holds_reading_it_gives_an_object_or_one_message(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_json(path, "record it again")
    assert str(path) in str(raised.value)


def test_a_full_disk_names_the_file(tmp_path):
    """The system's error of a failed write names no file: the line said only that there was no space."""
    with pytest.raises(OSError, match="No space") as raised, atomic_file(tmp_path / "a.npz"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "a.npz")


def test_a_folder_appears_whole(tmp_path):
    """A shard whose writer was killed was a folder with half of its arrays."""
    with atomic_path(tmp_path / "shard") as partial:
        partial.mkdir()
        (partial / "a.npy").write_bytes(b"1")
        assert not (tmp_path / "shard").exists()
    with pytest.raises(OSError, match="full"), atomic_path(tmp_path / "other") as partial:  # noqa: PT012
        partial.mkdir()
        (partial / "a.npy").write_bytes(b"1")
        raise OSError("the disk is full")
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]


def test_files_of_a_folder_are_replaced_together(tmp_path):
    """Bug prevented: a model's folder with one part of the new model and one of the old, which loads in silence."""
    folder = tmp_path / "model"
    for content in ("old", "new", "newer"):
        with pytest.raises(OSError) if content == "newer" else nullcontext(), atomic_folder(folder) as written:
            (written / "part").mkdir()
            (written / "part" / "a.txt").write_text(content)
            if content == "newer":
                raise OSError("the disk is full")
            (written / "b.txt").write_text(content)
        (folder / "notes.txt").write_text("of the user")
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"part/a.txt": "new", "b.txt": "new", "notes.txt": "of the user"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_only_what_killed_processes_left_is_removed(tmp_path):
    """Leftovers of kills would fill the disk; another process's unfinished file must not be taken for one."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, alive = int(done.stdout), os.getpid()
    names = [f".a.npz.{dead}-00000000.partial", f".b.npz.{alive}-00000000.partial", f".c.npz.{dead}-00000000.partial"]
    for name in [*names, ".d.npz.partial", "e.npz"]:
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / names[2])  # a process of that number may be at work on another machine
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], "e.npz"}


def test_what_a_killed_export_left_goes_with_the_next(tmp_path):
    """Half a model, hidden, stayed in the model's folder for ever."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = tmp_path / f".files.{int(done.stdout)}-00000000.partial"
    left.mkdir()
    (left / "half.txt").write_text("half")
    os.utime(left, (0, 0))
    with atomic_folder(tmp_path) as written:
        (written / "a.txt").write_text("whole")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path, monkeypatch):
    check_folder_can_be_written(tmp_path / "a" / "b", "--output_path")
    assert not (tmp_path / "a").exists()
    monkeypatch.chdir(tmp_path)
    check_folder_can_be_written(Path("a"), "--output_path")


@pytest.mark.parametrize("path", ["taken", "taken/a/b"])
def test_a_file_in_the_way_is_named(tmp_path, path):
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match=r"^--output_path: .*/taken is a file"):
        check_folder_can_be_written(tmp_path / path, "--output_path")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match=f"nothing can be written to {tmp_path}: "):
        check_folder_can_be_written(tmp_path / "a", "--output_path")


@dataclass(frozen=True)
class Measured:
    place: str
    value: float


SETTINGS = {"seed": 0, "size": (2, 3), "model": {"width": 8, "name": "a"}}


def test_rows_are_kept_with_their_settings(tmp_path):
    """Rows of two models in one table, refused without a word of what differs; a command that keeps nothing."""
    KeptRows(tmp_path, Measured, SETTINGS).add([Measured("a", -1.0), Measured("b", 2.0)])
    KeptRows(tmp_path, Measured, SETTINGS).add([Measured("c", 0.5)])
    assert [row.place for row in KeptRows(tmp_path, Measured, SETTINGS).rows] == ["a", "b", "c"]
    other = {"seed": 0, "size": [2, 4], "model": {"width": 8, "name": "b"}, "unset": None}
    message = (
        r"made with other settings \(model.name was a, is b; size was \[2, 3\], is \[2, 4\]\): name another folder"
    )
    with pytest.raises(UserError, match=message):
        KeptRows(tmp_path, Measured, other)
    (tmp_path / "settings.json").unlink()
    KeptRows(tmp_path, Measured, other).add([Measured("d", 1.0)])
    assert [row.place for row in KeptRows(tmp_path, Measured, other).rows] == ["d"]


def test_the_report_of_an_evaluation_is_left_alone(tmp_path):
    """Policies and plans wrote their report.md over it: a finished evaluation has no settings.json."""
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="has the report of a finished evaluation: name another folder"):
        KeptRows(tmp_path, Measured, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    "line",
    ['{"place": "a"', "[]", "null", '{"place": "a"}', '{"place": 3, "value": 1}', '{"place": "a", "value": NaN}'],
)
def test_damaged_rows_are_named(line, tmp_path):
    """A traceback, or a mean over fewer rows than there were."""
    KeptRows(tmp_path, Measured, SETTINGS).add([Measured("a", -1.0)])
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"episodes\.jsonl: line 2 is damaged .*; remove it to begin anew"):
        KeptRows(tmp_path, Measured, SETTINGS)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json is not valid JSON"):
        KeptRows(tmp_path, Measured, SETTINGS)
