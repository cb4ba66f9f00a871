"""The Meta-World protocol on the real simulator, at 16 pixels and for a few steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ivideogpt.errors import UserError
from mbrl.envs.env_settings import METAWORLD, PAPER_TASKS, canonical_task, task_names
from mbrl.envs.metaworld_env import MetaWorldEnv, paper_button_reward
from mbrl.envs.offscreen import halve, select_backend

ROOT = Path(__file__).resolve().parents[3]
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def env(renders):
    env = MetaWorldEnv("coffee_push", image_size=16)
    yield env
    env.close()


def play(env, seed):
    frames = [env.reset(seed=seed)[0]]
    steps = [env.step(action) for action in ACTIONS]
    return np.stack(frames + [step[0] for step in steps]), [step[1] for step in steps], env.state


def test_task_names():
    assert canonical_task("coffee_push") == canonical_task("coffee-push-v3") == "coffee-push"
    assert len(task_names()) == 50
    assert set(PAPER_TASKS) <= set(task_names())
    with pytest.raises(UserError, match="did you mean coffee-push"):
        canonical_task("coffee-psh")


def test_an_episode_depends_on_its_seed_alone(env):
    """Bug prevented: state of the previous episode, or numpy's global generator, leaking into the next one."""
    frames, rewards, state = play(env, seed=3)
    play(env, seed=4)
    np.random.seed(0)
    again, same_rewards, same_state = play(env, seed=3)
    np.testing.assert_array_equal(frames, again)
    np.testing.assert_array_equal(state, same_state)
    assert rewards == same_rewards
    assert frames.shape == (6, 16, 16, 3)
    assert frames.dtype == np.uint8


def test_goals_are_drawn_anew_and_stay_visible_to_scripted_policies(env):
    """Bug prevented: a hidden goal is clipped to zero in observations, and coffee-push is scripted by its goal."""
    env.reset(seed=0)
    env.step(ACTIONS[0])
    first = env.state[-3:]
    env.reset(seed=1)
    env.step(ACTIONS[0])
    assert np.abs(first[:2]).sum() > 0
    assert not np.array_equal(first, env.state[-3:])


def test_action_repeat_sums_rewards(env):
    """One step of an agent is two of the simulator."""
    env.reset(seed=0)
    _, reward, *_ = env.step(ACTIONS[0])
    env.reset(seed=0)
    _, first, *_ = env._env.step(ACTIONS[0])
    _, second, *_ = env._env.step(ACTIONS[0])
    assert reward == first + second


def test_reset_takes_one_zero_step(env):
    env.reset(seed=0)
    assert env._env.curr_path_length == 1


def test_frames_are_copies(env):
    """Bug prevented: every frame of an episode showing the last one, or negative strides that torch refuses."""
    first, _ = env.reset(seed=0)
    kept = first.copy()
    for _ in range(5):
        env.step(np.ones(4, np.float32))
    np.testing.assert_array_equal(first, kept)
    assert min(first.strides) > 0
    assert not np.array_equal(first, env.render())


def test_picture_is_upright_and_mirrored(env):
    """In the published demonstrations the robot stands at the left, grey sky above and the brown table below."""
    frame = env.reset(seed=0)[0].astype(float)
    top, bottom = frame[:2].mean((0, 1)), frame[-5:-2, 6:12].mean((0, 1))
    assert np.ptp(top[1:]) < 5  # sky: no colour but the arm's red
    assert bottom[0] > bottom[2] + 15  # wood
    redness = frame[..., 0] - frame[..., 2]
    assert redness[:8, :8].max() > redness[:8, 8:].max() + 20


def test_gymnasium_makes_and_accepts_it(env):
    """Bug prevented: an environment that other code for gymnasium's cannot use."""
    made = gymnasium.make(METAWORLD, task="reach", image_size=16)
    check_env(made.unwrapped)
    first, second = made.reset(seed=1)[0], made.reset()[0]
    assert not np.array_equal(first, second)  # without a seed, another goal
    made.close()


def test_more_than_500_simulator_steps_are_allowed(env):
    env.reset(seed=0)
    env._env.curr_path_length = 600
    env.step(ACTIONS[0])


def test_unknown_camera_is_named(env):
    with pytest.raises(UserError, match=r"no camera named 'nowhere'; there are .*corner2"):
        MetaWorldEnv("coffee-push", image_size=16, camera="nowhere")


def test_paper_reward_inverts_the_gripper_term_only():
    """Meta-World 3.1 rewards an open gripper where the paper's version rewarded a closed one."""
    seen = []

    def compute_reward(action, obs):
        seen.append(obs)
        return 1.0, 2.0, obs[3], 4.0, 5.0, 6.0

    obs = np.arange(39) / 100
    assert paper_button_reward(compute_reward)(np.zeros(4), obs) == (1.0, 2.0, 0.03, 4.0, 5.0, 6.0)
    assert seen[0][3] == 1 - 0.03
    np.testing.assert_array_equal(np.delete(seen[0], 3), np.delete(obs, 3))
    assert obs[3] == 0.03


@pytest.mark.parametrize(("paper_reward", "expected"), [(True, False), (False, True)])
def test_button_press_topdown_wall_selects_its_reward(env, paper_reward, expected):
    """The reset's gripper is open: 3.1 rewards that, the paper's version does not."""
    button = MetaWorldEnv("button-press-topdown-wall", image_size=16, paper_reward=paper_reward)
    button.reset(seed=0)
    _, reward, *_ = button.step(np.array([0, 0, 0, -1], np.float32))
    button.close()
    assert (reward > 0.1) == expected


def test_halve_is_the_rounded_mean():
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    mean = image.reshape(4, 2, 3, 2, 3).astype(float).mean((1, 3))
    np.testing.assert_array_equal(halve(image), np.floor(mean + 0.5))


def test_a_library_that_does_not_work_is_one_clear_error(monkeypatch):
    """Bug prevented: an AttributeError from inside PyOpenGL on machines without EGL."""
    monkeypatch.setenv("MUJOCO_GL", "directx")
    with pytest.raises(UserError, match=r"tried directx, as MUJOCO_GL says.*apt-get install libegl1"):
        select_backend.__wrapped__()


def test_rendering_works_after_somebody_else_imported_mujoco(env):
    """mujoco binds an OpenGL library when it is first imported: ours must not depend on who came first."""
    code = (
        "import os; os.environ.pop('MUJOCO_GL', None); import mujoco, metaworld\n"
        "from mbrl.envs.metaworld_env import MetaWorldEnv\n"
        "print(MetaWorldEnv('reach', image_size=16).reset(seed=0)[0].mean() > 1)"
    )  # not closed: leaving the interpreter with an open renderer must be quiet too
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True", "")
