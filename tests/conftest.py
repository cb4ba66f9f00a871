import os

# Before torch is imported, and for the commands that tests run: small models are fastest on one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

from pathlib import Path

import pytest
import torch

from tests.parity.networks import world_model


@pytest.fixture(autouse=True)
def seeded():
    """Tests do not depend on which ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved world model with 4-D actions: 64 px, context 2, segment 5. Not to be written to."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    world_model(action_dim=4).save_pretrained(folder)
    return folder
