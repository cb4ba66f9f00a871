import os

# Before torch is imported, and for the commands that tests run: small models are fastest on one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from ivideogpt.action_spaces import ActionSpace, ActionSpaces
from ivideogpt.errors import UserError
from ivideogpt.precision import BFLOAT16_SWITCH
from ivideogpt.transformer.backends.cpu_kernels import kernels as native
from mbrl.envs.offscreen import select_backend
from tests.parity import networks


def pytest_addoption(parser):
    parser.addoption("--mutants", type=int, default=300, help="damaged files that each reader is tried on (tests/fuzz)")


@pytest.fixture
def num_mutants(request) -> int:
    return request.config.getoption("--mutants")


@pytest.fixture(autouse=True)
def seeded():
    """Tests do not depend on which ran before."""
    torch.manual_seed(0)


MODES = [(precision, kernels) for precision in ("float32", "bfloat16") for kernels in ("compiled", "torch")]


@pytest.fixture(params=MODES, ids="-".join)
def every_mode(request, monkeypatch):
    """Run a test as machines of every kind would, for commands that it starts too: what "auto" means, whose kernels."""
    precision, kernels = request.param
    monkeypatch.setenv(BFLOAT16_SWITCH, "1" if precision == "bfloat16" else "0")
    monkeypatch.setenv(native.SWITCH, "1" if kernels == "compiled" else "0")
    native.library.cache_clear()
    if kernels == "compiled" and native.library() is None:
        pytest.skip("no C++ compiler")
    yield getattr(torch, precision)
    native.library.cache_clear()


@pytest.fixture(params=["torch", "compiled"])
def kernels(request, monkeypatch):
    """Passes by torch's own kernels, as on a GPU or without a compiler, and by compiled code.

    New memory holds NaN: fresh from the system it would hold zeros, and reading it would go unnoticed.
    """
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C++ compiler")
    new_empty = torch.Tensor.new_empty

    def poisoned(*args, **kwargs):
        made = new_empty(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    return request.param


@pytest.fixture(scope="session")
def tiny_world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved world model with 4-D actions: 64 px, context 2, segment 5. Not to be written to."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    networks.world_model(action_dim=4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def robots_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model with heads, of an arm (4-D actions) and a hand (3-D): 64 px. Not to be written to."""
    arm = ActionSpace("arm", 4, (0.5,) * 4, (2.0,) * 4, datasets=("arm-data",))
    spaces = ActionSpaces((arm, ActionSpace("hand", 3, datasets=("hand-data",))))
    folder = tmp_path_factory.mktemp("models") / "robots"
    heads = dict(reward_prediction=True, success_prediction=True)
    networks.world_model(action_dim=spaces.length, action_spaces=spaces, **heads).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def renders():
    """Skip tests that render where nothing can."""
    try:
        select_backend()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its state in the process, and refuses another precision there."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tokenizer_config(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("configs") / "tokenizer.json"
    file.write_text(json.dumps(networks.tokenizer_config() | {"context_length": 2}))
    return file


@pytest.fixture
def trains(tiny_world_model, tokenizer_config, tmp_path, monkeypatch):
    """Two steps of each training script on a dataset: ``trains(action_dim=4, dataset_path=folder)``.

    ``dataset_yaml`` stands for the checkout's DATASET.yaml; without ``action_dim`` the transformer is action-free; the
    rest are flags of both scripts.
    """
    from ivideogpt.data import catalog
    from tests.training.runs import build_gpt, build_tokenizer, fit, metrics_of

    def train(action_dim: int | None = None, dataset_yaml: Path | None = None, **flags: object) -> None:
        if dataset_yaml is not None:
            monkeypatch.setattr(catalog, "DATASET_YAML", dataset_yaml)
        both = f"""
            --resolution 64 --context_length 2 --segment_length 3 --seed 0 --log_steps 1 --max_eval_iters 1
            --report_to none --output_dir {tmp_path / "runs"} {" ".join(f"--{name} {flags[name]}" for name in flags)}
        """
        of_tokenizer = f"--model_config_name_or_path {tokenizer_config} --train_batch_size 1"
        of_tokenizer += " --max_train_steps 4 --disc_start 9 --perc_weight 0"  # every other phase is idle
        of_transformer = f"""
            --pretrained_model_name_or_path {tiny_world_model / "tokenizer"} --per_device_train_batch_size 1
            --config_name {tiny_world_model / "transformer" / "config.json"} --max_train_steps 2
        """
        if action_dim is not None:
            of_transformer += f"--action_conditioned --action_dim {action_dim}"
        for build, own in ((build_tokenizer, of_tokenizer), (build_gpt, of_transformer)):
            lines = metrics_of(fit(build(f"{both} {own} --dataloader_num_workers 0".split())))
            losses = [line["loss"] for line in lines if line["split"] == "train"]
            assert len(losses) == 2
            assert all(map(math.isfinite, losses))
            AcceleratorState._reset_state(reset_partial_state=True)

    return train
