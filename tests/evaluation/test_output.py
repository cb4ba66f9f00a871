import os
from pathlib import Path

import pytest

from ivideogpt.errors import UserError
from ivideogpt.evaluation.output import check_folder_can_be_written


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
