"""The README's Python is run, and its map names what is there."""

import re

import pytest

from tests.commands import run_python
from tests.documented import ROOT, blocks

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/rollouts.md", "docs/evaluation.md", "docs/planning.md"])
def test_python(page, tmp_path):
    """Examples are what people copy."""
    (code,) = blocks((ROOT / page).read_text(), "python")
    (tmp_path / "example.py").write_text(f"import sys\nsys.path[0] = {str(ROOT)!r}\n{code}")
    done = run_python(tmp_path / "example.py")
    assert done.returncode == 0, done.stderr


def test_file_map_and_links():
    """The map names what is there."""
    file_map = README.partition("## Where things are")[2]
    paths = re.findall(r"^([\w/.-]+)  ", file_map, re.MULTILINE) + re.findall(r"\]\(([\w/.-]+)\)", README)
    assert len(paths) > 20
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_named_files_exist():
    """Commands in running text are commands, too."""
    named = re.findall(r"`bash (\S+)`", README) + re.findall(r"inference/samples/[\w.-]+", README)
    assert not [path for path in named if not (ROOT / path).is_file()]
