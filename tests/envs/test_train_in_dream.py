"""An agent of stable-baselines3 in a world model: the interface, and the example that trains one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from stable_baselines3 import SAC

from examples.train_in_dream import DreamArgs, build_simulator, evaluate, main
from ivideogpt.envs.stable_baselines import PixelFeatures, StableBaselinesEnv
from ivideogpt.errors import UserError
from ivideogpt.flags import parse
from tests.documented import ROOT
from tests.envs.conftest import BRIGHT, actions


def test_its_interface_is_ours(envs):
    """A horizon taken for an end would teach that nothing comes after it; a lost last frame, what comes after it."""
    settings = dict(BRIGHT, horizon=1, autoreset_mode=AutoresetMode.SAME_STEP)
    ours, theirs = envs(2, **settings), StableBaselinesEnv(envs(2, **settings))
    theirs.seed(5)
    np.testing.assert_array_equal(theirs.reset(), ours.reset(seed=5)[0])
    kinds = set()
    for step_actions in actions(ours)[:4]:
        observations, rewards, terminations, _, infos = ours.step(step_actions)
        seen, given, ended, rows = theirs.step(step_actions)
        np.testing.assert_array_equal(seen, observations)
        np.testing.assert_allclose(given, rewards, rtol=1e-6)
        assert ended.all()
        for row in range(2):
            np.testing.assert_array_equal(rows[row]["terminal_observation"], infos["final_obs"][row])
            assert rows[row]["TimeLimit.truncated"] == (not terminations[row])
            assert rows[row]["is_success"] == terminations[row]
            kinds.add(bool(terminations[row]))
    assert kinds == {True, False}
    with pytest.raises(UserError, match="needs SAME_STEP"):
        StableBaselinesEnv(envs(1))


def test_features_tell_pictures_apart_whatever_was_learned():
    """The actor of SAC lost all ReLUs, so that the agent that closed every drawer did the same in every state."""
    features = PixelFeatures(Box(0, 255, (9, 64, 64), np.uint8))
    dark_and_bright = torch.rand(2, 9, 64, 64) * torch.tensor([0.2, 1.0])[:, None, None, None]
    for layer in features.layers:
        if isinstance(layer, torch.nn.Conv2d):
            layer.bias.data.fill_(-1)  # no ReLU lets anything through there
    dark, bright = features(dark_and_bright)
    assert (dark - bright).abs().mean() > 1e-6  # 0 with ReLUs
    (dark - bright).square().mean().backward()
    assert features.layers[0].weight.grad.abs().max() > 1e-10


def test_the_simulator_is_like_the_dream(tmp_path):
    """Its pictures were 64 pixels wide beside models of any size, and a wrong task was found after loading."""
    flags = ["--dataset_path", str(ROOT / "inference" / "samples"), "--output_path", str(tmp_path / "out")]
    simulator = build_simulator(parse(DreamArgs, [*flags, "--task", "plate-slide"]), "plate-slide", 32)
    assert simulator.single_observation_space.shape == (9, 32, 32)
    simulator.close()
    with pytest.raises(UserError, match="did you mean plate-slide"):
        main([*flags, "--task", "plate-slid", "--pretrained_model_name_or_path", "nowhere"])


def test_actions_beyond_the_simulator_s_are_clipped(tmp_path):
    """A model that was trained on normalised actions offers two standard deviations, which may be more than 1."""
    flags = ["--dataset_path", str(ROOT / "inference" / "samples"), "--output_path", str(tmp_path / "out")]
    args = parse(DreamArgs, [*flags, "--task", "plate-slide", "--eval_episodes", "1", "--eval_steps", "2"])
    agent = SimpleNamespace(predict=lambda stacks, deterministic: (np.full((len(stacks), 4), 1.2, np.float32), None))
    simulator = build_simulator(args, "plate-slide", 32)
    assert evaluate(args, agent, simulator).keys() == {"success_rate", "reward"}
    simulator.close()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seed 5000000000", "--seed is 5000000000: it must be at most"),  # a traceback of numpy
        ("--total_steps 400", "end before the first update, after --random_steps 400: nothing would be learned"),
    ],
)
def test_flags_that_cannot_train(flags, message, tmp_path):
    required = f"--dataset_path nowhere --task plate-slide --output_path {tmp_path}"
    with pytest.raises(UserError, match=message):
        parse(DreamArgs, f"{required} {flags}".split())


REWARD = """
import os, pathlib, signal

MARK = pathlib.Path(__file__).with_suffix(".stopped")

def reward(frames):
    if not MARK.exists():
        MARK.touch()
        os.kill(os.getpid(), signal.SIGTERM)
    return frames.mean(dim=(1, 2, 3))
"""


def test_the_example_trains_stops_goes_on_and_evaluates(rewarding_model, tmp_path, capsys, monkeypatch):
    """What it had learned was lost by Ctrl-C; frames in another order than the agent learned would go unnoticed."""
    rewarding_model.save_pretrained(tmp_path / "model")
    (tmp_path / "reward.py").write_text(REWARD)
    flags = (
        f"--pretrained_model_name_or_path {tmp_path / 'model'} --dataset_path {ROOT / 'inference' / 'samples'} "
        f"--task plate_slide --output_path {tmp_path / 'out'} --total_steps 8 --num_envs 2 --random_steps 4 "
        f"--gradient_steps 1 --batch_size 2 --eval_episodes 1 --eval_steps 2 --functions {tmp_path / 'reward.py'}"
    ).split()
    main(flags)
    assert "stopped after 2 of 8 steps: the same command goes on" in capsys.readouterr().out
    begun = (tmp_path / "out" / "results.json").read_text()
    with pytest.raises(UserError, match=r"batch_size was 2, is 3; seed was 0, is 1\): name another folder"):
        main([*flags, "--batch_size", "3", "--seed", "1"])
    (tmp_path / "out" / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"agent\.zip has learned, and no scores from before"):
        main(flags)
    (tmp_path / "out" / "results.json").write_text(begun)
    seeds, seed = [], SAC.set_random_seed
    monkeypatch.setattr(SAC, "set_random_seed", lambda self, number=None: (seeds.append(number), seed(self, number)))
    main(flags)
    assert seeds[-1] == 2  # begun again at 0, it would repeat its first actions and starts
    assert "after: success rate" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["before"].keys() == results["after"].keys() == {"success_rate", "reward"}
    assert results["before"] != results["after"]  # it has learned something, if nothing useful
    agent = SAC.load(tmp_path / "out" / "agent.zip")
    assert agent.num_timesteps == 8
    assert isinstance(agent.actor.features_extractor, PixelFeatures)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["agent.zip", "results.json", "settings.json"]
