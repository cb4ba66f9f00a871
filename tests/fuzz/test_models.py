"""Damaged model folders: loaded, or refused in one line before anything large is allocated."""

import shutil

import pytest

from ivideogpt import WorldModel
from tests.fuzz.mutate import check_mutants

LEAK = 20_000  # bytes a model: safetensors 0.8 leaves about 60 behind for each tensor that it reads


@pytest.fixture
def model(tmp_path, tiny_world_model):
    shutil.copytree(tiny_world_model, tmp_path / "model")
    return tmp_path / "model"


def test_model_folders(model, num_mutants):
    """A folder from elsewhere may claim any width and any number of layers. Building a model takes 50 ms."""
    outcome = check_mutants(model, WorldModel.from_pretrained, num_mutants // 3, leak=LEAK)
    assert outcome.refused > num_mutants // 9
    assert outcome.read
