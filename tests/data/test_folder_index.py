"""A list of files that is out of date trains on episodes that are gone, or never on those that are new."""

import json
import os
import shutil

import pytest

from ivideogpt.data import catalog
from ivideogpt.data.catalog import npz_files
from ivideogpt.errors import UserError

NUM_FILES = 30


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder large enough for an index, in which nothing has happened for long enough."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(catalog, "INDEXED_FROM", 20)
    monkeypatch.setattr(catalog, "SETTLED_AFTER", 0.0)
    folder = tmp_path / "episodes"
    folder.mkdir()
    for number in range(NUM_FILES):
        (folder / f"{number:03d}.npz").touch()
    (folder / ".030.npz.partial").touch()
    (folder / "notes.txt").touch()
    return folder


def indices(folder):
    return sorted((folder.parent / "cache").rglob("*"))


@pytest.fixture
def listed(monkeypatch):
    """The folders that have been listed."""
    folders = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: folders.append(folder) or scandir(folder))
    return folders


def expected(folder, numbers=range(NUM_FILES)):
    return [str(folder / f"{number:03d}.npz") for number in numbers]


def test_an_unchanged_folder_is_listed_once(folder, listed):
    assert npz_files(folder) == npz_files(folder) == expected(folder)
    assert len(listed) == 1
    assert sorted(os.listdir(folder))[0] == ".030.npz.partial", "nothing is written beside the data"


def test_all_names_of_a_folder_share_its_index(folder, listed, tmp_path, monkeypatch):
    npz_files(folder)
    (tmp_path / "link").symlink_to(folder)
    assert npz_files(tmp_path / "link") == [file.replace("/episodes/", "/link/") for file in expected(folder)]
    monkeypatch.chdir(tmp_path)
    assert npz_files(folder.relative_to(tmp_path))[0] == "episodes/000.npz"
    assert len(listed) == 1


def change_add(folder):
    (folder / "900.npz").touch()
    return [*range(NUM_FILES), 900]


def change_remove(folder):
    (folder / "007.npz").unlink()
    return [number for number in range(NUM_FILES) if number != 7]


def change_rename(folder):
    (folder / "007.npz").rename(folder / "907.npz")
    return [*(number for number in range(NUM_FILES) if number != 7), 907]


def change_and_set_the_time_back(folder):
    """As copying tools do that keep times."""
    status = folder.stat()
    numbers = change_add(folder)
    os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))
    return numbers


def change_replace_the_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    return change_add_many(folder)


def change_add_many(folder):
    for number in range(100, 125):
        (folder / f"{number}.npz").touch()
    return range(100, 125)


@pytest.mark.parametrize(
    "change",
    [change_add, change_remove, change_rename, change_and_set_the_time_back, change_replace_the_folder],
)
def test_a_changed_folder_is_listed_anew(folder, change):
    npz_files(folder)
    numbers = change(folder)
    assert npz_files(folder) == npz_files(folder) == expected(folder, numbers)


def test_a_folder_that_has_just_changed_is_not_indexed(folder, monkeypatch):
    """The next file may come within the same tick of the file system's clock, and leave no trace in the times."""
    monkeypatch.setattr(catalog, "SETTLED_AFTER", 60.0)
    npz_files(folder)
    assert not indices(folder)


def test_small_folders_are_not_indexed(folder, monkeypatch):
    monkeypatch.setattr(catalog, "INDEXED_FROM", NUM_FILES + 1)
    npz_files(folder)
    assert not indices(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: "\x00" * 10,
        lambda text: json.dumps(json.loads(text) | {"names": None}),
    ],
)
def test_a_damaged_index_is_made_anew(folder, damage):
    npz_files(folder)
    index = indices(folder)[-1]
    whole = index.read_text()
    index.write_text(damage(whole))
    assert npz_files(folder) == expected(folder)
    assert index.read_text() == whole


def test_no_place_for_an_index_is_no_fault(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for cache in (str(tmp_path / "file"), "/proc/none"):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        assert npz_files(folder) == expected(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "nowhere")
    assert npz_files(folder) == expected(folder)


def test_folders_that_cannot_be_listed_are_named(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    (tmp_path / "file").touch()
    for name, reason in [("loop", "symbolic link"), ("file", "not a directory"), ("absent", "no such file")]:
        with pytest.raises(UserError, match=f"{name}: cannot be listed .*{reason}"):
            npz_files(tmp_path / name)
