"""Recordings and models of other people, which are not part of the project: tests on them skip where they are not."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("REAL_DATA", Path(__file__).parents[2] / "shared" / "real"))


def real_data(name: str) -> Path:
    """A folder in the one that REAL_DATA names, or in ``shared/real`` beside the checkout."""
    if not (FOLDER / name).is_dir():
        pytest.skip(f"no {FOLDER / name}; REAL_DATA names the folder of such data")
    return FOLDER / name
