"""Damage to a folder of files is found and named."""

import os

import pytest

from ivideogpt.runs.checkpoints import CHECKSUMS, damage_of, write_checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.pt").write_bytes(b"abcdef")
    (tmp_path / "sub" / "b.safetensors").write_bytes(b"0" * 3_000_000)
    write_checksums(tmp_path)
    return tmp_path


def test_what_was_written_is_undamaged(folder):
    assert damage_of(folder) is None
    assert damage_of(folder, contents=False) is None


def test_a_changed_byte_is_found_by_reading_only(folder):
    """A run resumed from weights in which the disk had changed a byte, without a word."""
    path = folder / "sub" / "b.safetensors"
    content = bytearray(path.read_bytes())
    content[2_500_000] ^= 1
    path.write_bytes(content)
    assert damage_of(folder, contents=False) is None
    assert damage_of(folder) == "sub/b.safetensors has other contents than were written"


def test_truncated_and_missing_files_are_found_by_their_sizes(folder):
    os.truncate(folder / "a.pt", 3)
    assert damage_of(folder, contents=False) == "a.pt has 3 bytes, not 6"
    (folder / "a.pt").unlink()
    assert damage_of(folder, contents=False) == "a.pt is missing"


@pytest.mark.parametrize(
    "content", ["", "[1]", "{}", '{"files": 3}', '{"files": {"a.pt": 3}}', '{"files": {"a.pt": {}}}']
)
def test_a_damaged_list_is_damage(folder, content):
    (folder / CHECKSUMS).write_text(content)
    assert CHECKSUMS in (damage_of(folder) or "")
