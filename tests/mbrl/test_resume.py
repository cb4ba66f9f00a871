"""A run that is killed at any moment and started again ends as if nothing had happened, to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import suppress

import numpy as np
import pytest
import torch

from ivideogpt.errors import UserError
from ivideogpt.pretrained import save_transformer
from ivideogpt.runs import checkpoints
from mbrl.agent.drqv2 import DrQAgent
from mbrl.build_video_predictor import build_video_predictor
from mbrl.envs import vector_env
from mbrl.envs.agent_env import AgentEnv
from mbrl.metric_logger import MetricLogger
from mbrl.replay import replay_memory
from mbrl.settings import WorldModelConfig
from tests.mbrl.runs import WorldModel, lines, train_drq, train_mbpo
from tests.parity.networks import tokenizer, transformer

FILMS = ("save_video=true", "num_eval_episodes=1")


class Killed(BaseException):
    """No `except Exception` sees it, as none sees SIGKILL."""


class Bomb:
    """Goes off at a call of something that a run does often, saving included."""

    PLACES = (
        (AgentEnv, "step"), (DrQAgent, "update"), (WorldModel, "update_tokenizer"), (WorldModel, "update_transformer"),
        (WorldModel, "imagine"), (WorldModel, "validate"), (MetricLogger, "write"), (os, "fsync"), (os, "replace"),
        (os, "rename"), (torch, "save"), (shutil, "rmtree"), (np, "savez"),
    )  # fmt: skip

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        self.num_calls = self.num_explosions = 0
        for owner, name in self.PLACES:
            monkeypatch.setattr(owner, name, self._armed(getattr(owner, name)))

    def _armed(self, original):
        def call(*args, **kwargs):
            self.num_calls += 1
            self.left -= 1
            if self.left == 0:
                self.num_explosions += 1
                raise Killed
            return original(*args, **kwargs)

        return call


def final_state(run_dir):
    folder = max((run_dir / "snapshots").iterdir())
    state = torch.load(folder / "state.pt", weights_only=True)
    for part, key in (("progress", "seconds"), ("records", "metrics.jsonl")):
        del state["parts"][part][key]  # a clock, and a size that depends on it
    for table in ("train.csv", "eval.csv"):
        del state["parts"]["records"][table]
    with np.load(folder / "environment.npz") as file:
        return state, dict(file)


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor | np.ndarray):
        assert (one == other).all()
    else:
        assert one == other


def assert_same_run(one, other):
    assert lines(one) == lines(other)
    mine, theirs = final_state(one), final_state(other)
    for state, _ in (mine, theirs):  # episodes are divided into pieces as they were saved
        for manifest in state["replay"].values():
            del manifest["pieces"]
    assert_same(mine, theirs)


@pytest.mark.parametrize("seed", [0])
def test_killed_ten_times(tmp_path, cheap_runs, monkeypatch, seed):
    bomb = Bomb(monkeypatch)
    options = ("num_train_frames=182", "replay_buffer_size=80", *FILMS)
    train_mbpo(tmp_path / "whole", *options)
    num_calls = bomb.num_calls
    rng = np.random.default_rng(seed)
    for _ in range(10):
        bomb.left = int(rng.integers(1, num_calls // 4))
        with suppress(Killed):  # the last ones may find a finished run, in which little happens
            train_mbpo(tmp_path / "killed", *options)
    assert bomb.num_explosions >= 6
    bomb.left = -1
    assert train_mbpo(tmp_path / "killed", *options) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("stops_at", [20, 57])
def test_interrupted(tmp_path, cheap_runs, whole_mbpo, monkeypatch, stops_at):
    """In the middle of an episode: the step is finished and saved, and the exit code says which signal it was."""
    step, num_steps = AgentEnv.step, 0

    def stopping(self, action):
        nonlocal num_steps
        num_steps += 1
        if num_steps == stops_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, action)

    with monkeypatch.context() as patched:
        patched.setattr(AgentEnv, "step", stopping)
        assert train_mbpo(tmp_path / "stopped") == 128 + signal.SIGTERM
    assert train_mbpo(tmp_path / "stopped") == 0
    assert_same_run(whole_mbpo, tmp_path / "stopped")


def test_interrupted_in_an_evaluation(tmp_path, cheap_runs, whole_mbpo, monkeypatch):
    """Bug prevented: a batch system's patience ends before twenty episodes do."""
    step, num_steps = AgentEnv.step, 0

    def stopping(self, action):
        nonlocal num_steps
        num_steps += 1
        if num_steps == 12 + 24 + 2:  # in the second evaluation, at frame 48, both of whose environments are stepped
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, action)

    with monkeypatch.context() as patched:
        patched.setattr(AgentEnv, "step", stopping)
        assert train_mbpo(tmp_path / "stopped") == 128 + signal.SIGTERM
    assert num_steps == 12 + 24 + 2
    assert saved_frame(tmp_path / "stopped") == 48
    assert train_mbpo(tmp_path / "stopped") == 0
    assert_same_run(whole_mbpo, tmp_path / "stopped")


@pytest.mark.parametrize("stops_in", ["update_transformer", "imagine"])
def test_interrupted_in_the_initial_updates(tmp_path, cheap_runs, monkeypatch, stops_in):
    """They end at the next one, and begin anew from a snapshot that was made right before, in mid-episode."""
    options = "start_mbpo=40", "num_train_frames=60"
    train_mbpo(tmp_path / "whole", *options)
    original, num_calls = getattr(WorldModel, stops_in), 0

    def stopping(self, *args, **kwargs):
        nonlocal num_calls
        num_calls += 1
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(WorldModel, stops_in, stopping)
        assert train_mbpo(tmp_path / "stopped", *options) == 128 + signal.SIGINT
    assert num_calls == 1
    assert saved_frame(tmp_path / "stopped") == 40
    assert train_mbpo(tmp_path / "stopped", *options) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_lost_worker_costs_nothing(tmp_path, cheap_runs, monkeypatch):
    """Bug prevented: a process killed for its memory in an evaluation took all frames since the last snapshot along."""
    options = "eval_every_frames=20", "num_train_frames=60"
    train_drq(tmp_path / "whole", *options)
    play = vector_env._play

    def lost(*args):
        if (tmp_path / "lost" / "train.csv").exists():
            raise vector_env.LostEnvironment("a process with environments ended by itself")
        return play(*args)

    with monkeypatch.context() as patched:
        patched.setattr(vector_env, "_play", lost)
        with pytest.raises(UserError, match="ended by itself"):
            train_drq(tmp_path / "lost", *options)
    assert saved_frame(tmp_path / "lost") == 20
    assert train_drq(tmp_path / "lost", *options) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "lost")


def saved_frame(run_dir) -> int:
    return int(json.loads((run_dir / "latest.json").read_text())["snapshot"])


def test_the_last_evaluation_is_at_the_end(tmp_path, cheap_runs):
    """Bug prevented: 100,000 frames, evaluated every 2000, ended without one; a longer run has it once, too."""
    assert train_drq(tmp_path / "parts", "num_train_frames=48") == 0
    for _ in range(2):
        assert [line["frame"] for line in lines(tmp_path / "parts", "eval")] == [0, 48]
        assert train_drq(tmp_path / "parts", "num_train_frames=48") == 0
    train_drq(tmp_path / "parts", "num_train_frames=60")
    train_drq(tmp_path / "whole", "num_train_frames=60")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_snapshot_is_checked_once(tmp_path, cheap_runs, monkeypatch):
    """Its checksums were read three times, which is gigabytes of a large world model."""
    train_mbpo(tmp_path, "num_train_frames=30")
    checked, crc = [], checkpoints._crc
    monkeypatch.setattr(checkpoints, "_crc", lambda path: checked.append(path.name) or crc(path))
    train_mbpo(tmp_path, "num_train_frames=30")
    assert sorted(checked) == ["environment.npz", "state.pt"]


def test_a_longer_run_goes_on(tmp_path, cheap_runs, whole_drq):
    """And one that was killed before its first snapshot begins anew."""
    for frames in (30, 60, 120):
        train_drq(tmp_path / "longer", f"num_train_frames={frames}")
    assert_same_run(whole_drq, tmp_path / "longer")


def test_a_run_keeps_its_capacity(tmp_path, cheap_runs, whole_mbpo, monkeypatch, caplog):
    """Bug prevented: less memory is free when a run goes on, and old episodes leave that it would have learned from."""
    train_mbpo(tmp_path / "parts", "num_train_frames=60")
    assert "may be too little" not in caplog.text
    monkeypatch.setattr(replay_memory, "available_memory", lambda: 2**20)
    train_mbpo(tmp_path / "parts")
    assert caplog.text.count("began with replay buffers for 60 steps") == 1
    assert_same_run(whole_mbpo, tmp_path / "parts")


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_the_real_world_model_goes_on(tmp_path, cheap_runs, device):
    """On a CPU to the bit: weights, moments, dropout's random numbers, and what was imagined."""
    tokenizer().save_pretrained(tmp_path / "model" / "tokenizer")
    save_transformer(transformer(tokenizer()), tmp_path / "model" / "transformer")
    config = WorldModelConfig(
        config_name=str(tmp_path / "model" / "transformer"),
        pretrained_model_name_or_path=str(tmp_path / "model" / "tokenizer"),
        pretrained_transformer_path=str(tmp_path / "model" / "transformer"),
        segment_length=5,
        max_target_frames=2,
        batch_size=2,
        without_lpips=True,
    )

    def train(folder, frames):
        world_model = build_video_predictor(config, torch.device(device), seed=0)
        overrides = "eval_every_frames=500", f"num_train_frames={frames}", f"device={device}"
        assert train_mbpo(folder, *overrides, world_model=world_model) == 0

    train(tmp_path / "whole", 48)
    for frames in (28, 48):
        train(tmp_path / "parts", frames)
    if device == "cpu":
        assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert {"transformer_reward", "tokenizer_recon", "imagined_reward"} <= lines(tmp_path / "whole", "train")[-1].keys()
