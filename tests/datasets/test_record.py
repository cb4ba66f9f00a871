"""The recorder of any environment: as a command on a real one, and with each kind of policy on a dial."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from stable_baselines3 import TD3

from datasets import record as recorder
from ivideogpt.errors import UserError
from ivideogpt.flags import parse
from mbrl.envs.rendered_env import RenderedEnv
from tests.documented import ROOT
from tests.mbrl.envs.test_rendered_env import BOUNDS, Dial


class Rarely(Dial):
    """Reports a success only in the step that is one."""

    def step(self, action):
        *result, info = super().step(action)
        return *result, {name: value for name, value in info.items() if value}


gymnasium.register("Rarely-v0", Rarely, kwargs={"action_space": BOUNDS})
DIAL = "tests.mbrl.envs.test_rendered_env:Dial-v0"
FLAGS = ["--image_size", "16", "--episode_length", "4", "--num_episodes", "2", "--seed", "5"]


def at_start(env, rng):
    """Turn the dial by what it showed at first, in the environment's own units."""
    return lambda observation: np.array([observation[0] / 100, -10 + env.unwrapped.dial / 10], np.float32)


def upwards(env, rng):
    return lambda observation: env.action_space.high


def record(output, *flags, env=DIAL):
    args = parse(recorder.RecordArgs, ["--env", env, "--output_path", str(output), *FLAGS, *flags])
    for number in range(args.num_episodes):
        recorder.record(args, number)
    return [dict(np.load(path)) for path in sorted(args.folder.glob("eps_*.npz"))]


@pytest.fixture(scope="module")
def recording(tmp_path_factory, renders):
    cwd = tmp_path_factory.mktemp("elsewhere")
    (cwd / "swaying.py").write_text("def act(env, rng):\n    return lambda observation: rng.uniform(-1, 1, 2)\n")
    command = [sys.executable, ROOT / "datasets" / "record.py", "--env", "Reacher-v5", "--output_path", "out", *FLAGS]
    command += ["--policy", "swaying:act", "--random_fraction", "0"]  # a module in the current folder
    for _ in range(2):  # the second one has nothing to do
        done = subprocess.run([*command, "--num_workers", "2"], cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "2 episodes are in out/Reacher-v5" in done.stdout
    return cwd / "out"


def test_a_recording_of_a_real_environment_trains(recording, trains):
    trains(oxe_data_mixes_type="folder:*", action_dim=2, dataset_path=recording)


def test_actions_are_taken_at_their_image(recording):
    """Bug prevented: actions or rewards off by one row, or in other units than those of `task=gym:Reacher-v5`."""
    episode = dict(np.load(recording / "Reacher-v5" / "eps_00000001.npz"))
    env = RenderedEnv("Reacher-v5", 16)
    seed = int(recorder.episode_rng(5, "Reacher-v5", 1).integers(2**31))
    np.testing.assert_array_equal(env.reset(seed=seed)[0], episode["image"][0])
    for row in range(4):
        frame, reward, *_ = env.step(episode["action"][row])
        np.testing.assert_array_equal(frame, episode["image"][row + 1])
        assert np.float32(reward) == episode["reward"][row]
    assert not episode["action"][4].any()
    assert "success" not in episode  # Reacher does not say, which does not mean never
    env.close()


def test_a_function_acts_in_the_environments_own_units(tmp_path):
    """Bug prevented: noise of unit size on actions in metres, and observations that are pictures."""
    flags = ["--policy", f"{__name__}:at_start", "--random_fraction", "0", "--noise", "0"]
    for episode in record(tmp_path, *flags):
        own = recorder.open_environment(parse(recorder.RecordArgs, ["--env", DIAL, "--output_path", "x", *FLAGS]))
        first = own.to_inner(episode["action"][0])
        assert first[0] * 100 == pytest.approx((first[1] + 10) * 10, abs=1e-3)
        assert 0 <= first[0] * 100 <= 100
        assert episode["image"][0, 8, 2, 0] == int(first[0] * 100 + 1e-3)


def test_test_episodes_have_all_levels_of_noise(tmp_path):
    """Every hundredth episode is one to test on: all of them had the first level, none."""
    flags = ["--policy", f"{__name__}:upwards", "--random_fraction", "0", "--noise", "0", "1"]
    args = parse(recorder.RecordArgs, ["--env", DIAL, "--output_path", str(tmp_path), *FLAGS, *flags])
    for number in (0, 100):
        recorder.record(args, number)
    first, second = (np.load(path) for path in sorted(args.folder.glob("eps_*.npz")))
    assert (first["action"][:-1] == 1).all()
    assert (second["action"][:-1] < 1).any()
    assert "success" in first


def test_all_episodes_have_successes_or_none(tmp_path, monkeypatch):
    """Bug prevented: files with and without them, of an environment that reports only where one has happened."""
    flags = ["--env", f"{__name__}:Rarely-v0", "--output_path", str(tmp_path), *FLAGS, "--num_episodes", "8"]
    flags += ["--policy", f"{__name__}:upwards", "--random_fraction", "0", "--noise", "0", "--episode_length", "2"]
    args = parse(recorder.RecordArgs, flags)
    for number in range(8):
        recorder.record(args, number)
    before = [dict(np.load(args.file(number))) for number in range(8)]
    has_some = ["success" in arrays for arrays in before]
    assert 0 < sum(has_some) < 8
    monkeypatch.setattr(sys, "argv", ["record.py", *flags, "--num_workers", "1"])
    recorder.main()
    for number, arrays in enumerate(before):
        after = dict(np.load(args.file(number)))
        np.testing.assert_array_equal(after.pop("success"), arrays.pop("success", np.zeros(3, bool)))
        for name, values in arrays.items():
            np.testing.assert_array_equal(after[name], values)
        assert list(after) == list(arrays)


def test_an_episode_may_end_early(tmp_path):
    """Bug prevented: rows after the end, or a recording that stops there with an error."""
    episodes = record(tmp_path, "--policy", f"{__name__}:upwards", "--random_fraction", "0", "--episode_length", "40")
    assert all(len(episode["action"]) == len(episode["image"]) < 20 for episode in episodes)


def test_a_trained_agent_acts(tmp_path):
    agent = TD3("MlpPolicy", gymnasium.make(DIAL, render_mode="rgb_array"), policy_kwargs={"net_arch": [4]})
    agent.save(tmp_path / "agent.zip")
    flags = ["--policy", f"td3:{tmp_path / 'agent.zip'}", "--random_fraction", "0", "--noise", "0"]
    episode = record(tmp_path, *flags)[0]
    env = RenderedEnv(DIAL, 16)
    env.reset(seed=int(recorder.episode_rng(5, DIAL, 0).integers(2**31)))
    expected = env.from_inner(agent.predict(env.state, deterministic=True)[0])
    np.testing.assert_allclose(episode["action"][0], expected, atol=1e-6)


def nothing(env, rng):
    return None


def idle(env, rng):
    return lambda observation: None


def short(env, rng):
    return lambda observation: [1.0]


def ragged(env, rng):
    return lambda observation: [[1.0], [1.0, 2.0]]


def unknown(env, rng):
    return lambda observation: [float("nan"), 0.0]


def alone():
    return None


def without_arguments(env, rng):
    return lambda: [1.0, 1.0]


def failing(env, rng):
    return lambda observation: observation["no such key"]


A_NUMBER = 3


@pytest.mark.parametrize("fraction", ["25", "-0.1", "1.01"])
def test_fractions_that_are_none(fraction):
    with pytest.raises(UserError, match=f"--random_fraction is {float(fraction)}: it must be at (least 0|most 1)"):
        parse(recorder.RecordArgs, ["--env", DIAL, "--output_path", "x", "--random_fraction", fraction])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("joy", "expected random, scripted, module:function or sac:agent.zip"),
        ("no_such_module:f", "no_such_module"),
        (f"{__name__}:g", "no attribute 'g'"),
        (f"{__name__}:A_NUMBER", "A_NUMBER: is int, expected a function"),
        (f"{__name__}:nothing", "returned None, expected a function from observation to action"),
        (f"{__name__}:idle", r"a policy wants the action None, expected one of Box.* of .*Dial-v0"),
        (f"{__name__}:short", r"a policy wants the action \[1.0\], expected one of Box"),
        (f"{__name__}:ragged", r"a policy wants the action .*, expected one of Box"),
        (f"{__name__}:unknown", r"a policy wants the action \[ *nan .*, expected 2 finite numbers"),
        (f"{__name__}:alone", r"alone: TypeError: alone\(\) takes 0 .*called with the environment and a random gen"),
        (f"{__name__}:without_arguments", r"TypeError: .* takes 0 positional arguments .*called with observations"),
        (f"{__name__}:failing", r"failing: IndexError: .* in line \d+ of .*test_record.py; it is called with"),
        ("ppo:nowhere.zip", "no such agent of stable-baselines3"),
        ("scripted", "Dial has no method scripted_policy"),
    ],
)
def test_policies_that_there_are_not(tmp_path, policy, message):
    with pytest.raises(UserError, match=message):
        record(tmp_path, "--policy", policy, "--random_fraction", "0")


def test_a_policy_that_there_is_not_records_nothing(tmp_path, monkeypatch):
    """Where most episodes are random ones, the first of them were written before anybody missed it."""
    flags = ["--env", DIAL, "--output_path", str(tmp_path / "out"), "--policy", "nobody", "--random_fraction", "0.9"]
    monkeypatch.setattr(sys, "argv", ["record.py", *flags, *FLAGS, "--num_workers", "1"])
    with pytest.raises(UserError, match="--policy nobody: expected random"):
        recorder.main()
    assert not (tmp_path / "out").exists()
