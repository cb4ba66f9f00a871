"""RoboDesk's tasks as VP2 uses them, in the real package where it is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest

from inference import plan, planning
from ivideogpt.errors import UserError
from mbrl.envs.env_settings import EnvSettings
from mbrl.envs.robodesk_env import TASKS, RoboDeskEnv
from tests.parity.networks import world_model

TASK = "mbrl.envs.robodesk_env:ivideogpt/RoboDesk-push_blue-fast-v0"
with_robodesk = pytest.mark.skipif(find_spec("robodesk") is None, reason="robodesk is not installed")
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (2, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def env():
    env = EnvSettings(TASK, action_repeat=5).make().env
    yield env
    env.close()


@with_robodesk
def test_a_seed_decides_the_episode_and_nothing_else(env):
    """The package draws from NumPy's global generator, whose other users must not notice."""
    np.random.seed(3)
    frames = [env.reset(seed=seed)[0] for seed in (0, 0, 1)]
    assert np.random.uniform() == np.random.RandomState(3).uniform()
    assert (frames[0].shape, frames[0].dtype) == ((64, 64, 3), np.uint8)
    assert frames[0].std() > 20
    np.testing.assert_array_equal(frames[0], frames[1])
    assert (frames[0] != frames[2]).any()


@with_robodesk
def test_goes_on_from_a_snapshot_bit_for_bit(env):
    """Runs of model-based RL are resumed in the middle of an episode."""
    env.reset(seed=0)
    env.step(ACTIONS[0])
    snapshot = env.snapshot()
    once = [env.step(action) for action in ACTIONS]
    env.reset(seed=1)
    env.restore(snapshot)
    for (frame, reward, *_), action in zip(once, ACTIONS, strict=True):
        again, reward_again, *_ = env.step(action)
        np.testing.assert_array_equal(frame, again)
        assert reward == reward_again
    with pytest.raises(UserError, match="a snapshot of stack cannot be restored"):
        env.restore({**snapshot, "task": np.array("stack")})


@with_robodesk
def test_states_have_positions_of_objects(env):
    """The package has their velocities in both places: a state could not be gone back to."""
    frame, _ = env.reset(seed=2)
    state = env.state
    assert state.shape == (73,)
    np.testing.assert_array_equal(state[18:47], env._desk.physics.data.qpos[9:])
    env.reset(seed=3)
    np.testing.assert_array_equal(env.reset_to(state), frame)
    np.testing.assert_array_equal(env.state, state)


@with_robodesk
def test_blocks_that_move_are_noticed(env):
    """The package compares present places with views of them, so that none ever moves."""
    env.reset(seed=0)
    physics = env._desk.physics
    assert env._desk._did_not_move("ball")
    physics.named.data.qpos["ball"][2] = 0.1
    physics.forward()
    assert not env._desk._did_not_move("ball")


@with_robodesk
def test_the_scripted_policy_pushes_a_button():
    """Its last frame is a goal: a goal without the button pushed would teach nothing."""
    env = RoboDeskEnv("push_blue", fast_rendering=True)
    env.reset(seed=1)
    policy = env.scripted_policy()
    assert any(env.step(policy())[4]["success"] for _ in range(6))
    env.close()


@with_robodesk
def test_planning(tmp_path):
    """Meta-World's names, or its four actions, taken for granted somewhere."""
    model, output = tmp_path / "model", tmp_path / "out"
    world_model(action_dim=5).save_pretrained(model)
    flags = "--action_repeat 2 --episodes 1 --episode_length 2 --replan_every 2 --horizon 2 --num_candidates 2"
    flags += " --planner mppi --init_std 0.5 0.5 0.5 0.1 0.1 --device cpu --dtype float32"
    paths = ["--pretrained_model_name_or_path", str(model), "--output_path", str(output), "--task", TASK]
    plan.main([*paths, *flags.split()])
    rows = [json.loads(line) for line in (output / "episodes.jsonl").read_text().splitlines()]
    assert [(row["task"], row["policy"]) for row in rows] == [
        (TASK, policy) for policy in ("scripted", "random", "mppi")
    ]
    assert (output / f"{planning.video_name(TASK, 'mppi', 0)}.gif").is_file()


def test_tasks_without_a_script_or_a_name(monkeypatch):
    with pytest.raises(UserError, match="no RoboDesk task named 'push_pink'; there are push_red"):
        RoboDeskEnv("push_pink")
    env = object.__new__(RoboDeskEnv)
    env.task = "open_drawer"
    assert env.task in TASKS
    with pytest.raises(UserError, match="no scripted policy for open_drawer; there is for push_red"):
        env.scripted_policy()


@pytest.mark.skipif(find_spec("robodesk") is not None, reason="robodesk is installed")
def test_what_to_install_is_said():
    """Its own requirements want packages of 2021; pip alone cannot install it."""
    with pytest.raises(UserError, match=r"pip install -e '.\[robodesk\]' and pip install --no-deps robodesk==1.0.0"):
        RoboDeskEnv()
