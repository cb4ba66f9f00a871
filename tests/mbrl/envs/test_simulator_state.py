"""Snapshots on the real simulator: what goes on from one must be what would have happened anyway, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.errors import UserError
from mbrl.envs.collection_policies import scripted_policy
from mbrl.envs.env_settings import PAPER_TASKS
from mbrl.envs.metaworld_env import MetaWorldEnv

pytestmark = pytest.mark.usefixtures("renders")

ROOT = Path(__file__).resolve().parents[3]
LENGTH = 5

GO_ON = """
import sys, numpy as np
from mbrl.envs.metaworld_env import MetaWorldEnv
_, task, snapshot, future = sys.argv
env = MetaWorldEnv(task, image_size=16)
env.restore(dict(np.load(snapshot, allow_pickle=False)))
expected = np.load(future, allow_pickle=False)
steps = [env.step(action) for action in expected["actions"]]
np.testing.assert_array_equal([step[0] for step in steps], expected["frames"])
np.testing.assert_array_equal([step[1] for step in steps], expected["rewards"])
np.testing.assert_array_equal(env.state, expected["state"])
"""


def play_until_contact(env: MetaWorldEnv) -> None:
    """By the scripted policy, until it has moved the object."""
    policy = scripted_policy(env.task)
    env.reset(seed=3)
    start = env.state[4:7].copy()
    for _ in range(60):
        env.step(np.clip(policy(env.state), -1, 1).astype(np.float32))
        if np.abs(env.state[4:7] - start).max() > 0.01:
            return
    raise AssertionError("nothing was touched")


def future(env: MetaWorldEnv) -> dict[str, np.ndarray]:
    """What follows under the scripted policy."""
    policy = scripted_policy(env.task)
    actions, frames, rewards = [], [], []
    for _ in range(LENGTH):
        actions.append(np.clip(policy(env.state), -1, 1).astype(np.float32))
        frame, reward, *_ = env.step(actions[-1])
        frames.append(frame)
        rewards.append(reward)
    return {
        "actions": np.stack(actions),
        "frames": np.stack(frames),
        "rewards": np.array(rewards),
        "state": env.state.copy(),
        "next": env._env.np_random.uniform(size=3),
    }


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_a_fresh_environment_goes_on_bit_for_bit(task, tmp_path):
    """Bug prevented: positions in the model, or attributes such as hammer's pickCompleted, that a snapshot lacks.

    Attributes that are views of the simulator's memory must stay views, or rewards go on from a still arm.
    """
    env, fresh = MetaWorldEnv(task, image_size=16), MetaWorldEnv(task, image_size=16)
    play_until_contact(env)
    np.savez(tmp_path / "snapshot.npz", **env.snapshot())
    expected = future(env)
    with np.load(tmp_path / "snapshot.npz", allow_pickle=False) as snapshot:
        fresh.restore(dict(snapshot))
    for key, value in future(fresh).items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
    env.close()
    fresh.close()


def test_going_back_in_the_same_environment_and_in_another_process(tmp_path):
    env = MetaWorldEnv("coffee-push", image_size=16)
    play_until_contact(env)
    snapshot = env.snapshot()
    expected = future(env)
    env.reset(seed=4)
    env.restore(snapshot)
    for key, value in future(env).items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
    env.close()
    np.savez(tmp_path / "snapshot.npz", **snapshot)
    np.savez(tmp_path / "future.npz", **expected)
    files = [str(tmp_path / "snapshot.npz"), str(tmp_path / "future.npz")]
    done = subprocess.run(
        [sys.executable, "-c", GO_ON, "coffee-push", *files], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_snapshot_is_arrays_of_its_own():
    """Bug prevented: a snapshot that changes as the environment goes on, or that only pickle could save."""
    env = MetaWorldEnv("plate-slide", image_size=16)
    env.reset(seed=0)
    snapshot = env.snapshot()
    before = {key: value.copy() for key, value in snapshot.items()}
    future(env)
    assert not any(value.dtype.hasobject for value in snapshot.values())
    for key, value in snapshot.items():
        np.testing.assert_array_equal(value, before[key])
    env.close()


def test_another_task_refuses_it():
    slide, hammer = MetaWorldEnv("plate-slide", image_size=16), MetaWorldEnv("hammer", image_size=16)
    slide.reset(seed=0)
    with pytest.raises(UserError, match="a snapshot of plate-slide cannot be restored in an environment of hammer"):
        hammer.restore(slide.snapshot())
    slide.close()
    hammer.close()
