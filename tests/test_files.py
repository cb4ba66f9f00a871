"""Small files that other processes, kills and full disks must never leave half-written."""

import json
import os

import pytest

from ivideogpt.errors import UserError
from ivideogpt.files import PARTIAL_SUFFIX, atomic_file, partial_path, read_json, write_json


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
        (json.dumps([1]).encode(), "holds a list, expected one JSON object"),
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
