from __future__ import annotations

import pytest

from ivideogpt.pretrained import save_transformer
from mbrl import build_trainer, trainer
from mbrl.envs.env_settings import EnvSettings
from mbrl.metric_logger import MetricLogger
from mbrl.settings import WorldModelConfig
from tests.mbrl.runs import SEGMENT_LENGTH, make_env, train_drq, train_mbpo
from tests.parity.networks import tokenizer, transformer


@pytest.fixture
def cheap_runs(monkeypatch):
    """Simulators that cost nothing, in this process, and a snapshot every other episode."""
    make_cheap(monkeypatch)


def make_cheap(monkeypatch):
    monkeypatch.setattr(EnvSettings, "make", make_env)
    monkeypatch.setattr(build_trainer, "num_processors", lambda: 1)
    monkeypatch.setattr(MetricLogger, "plot_success", lambda self: None)
    monkeypatch.setattr(trainer, "SNAPSHOT_EVERY", 2)


@pytest.fixture(scope="session")
def whole_drq(tmp_path_factory):
    """A run that nothing has interrupted, to compare others with; not to be changed."""
    return whole_run(train_drq, tmp_path_factory)


@pytest.fixture(scope="session")
def whole_mbpo(tmp_path_factory):
    """A run that nothing has interrupted, to compare others with; not to be changed."""
    return whole_run(train_mbpo, tmp_path_factory)


def whole_run(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_cheap(monkeypatch)
        assert train(folder) == 0
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An action-free model, as released ones are."""
    folder = tmp_path_factory.mktemp("act-free")
    tokenizer().save_pretrained(folder / "tokenizer")
    save_transformer(transformer(tokenizer()), folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def config(checkpoint) -> WorldModelConfig:
    return WorldModelConfig(
        config_name=str(checkpoint / "transformer" / "config.json"),
        pretrained_model_name_or_path=str(checkpoint / "tokenizer"),
        pretrained_transformer_path=str(checkpoint / "transformer"),
        segment_length=SEGMENT_LENGTH,
        max_target_frames=2,
        batch_size=2,
        without_lpips=True,
    )
