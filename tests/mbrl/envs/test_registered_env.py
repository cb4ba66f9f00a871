"""Environments that are registered from outside the project."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from inference.planning import scripted
from ivideogpt.errors import UserError
from mbrl.envs.env_settings import EnvSettings
from mbrl.envs.played_episode import play_episode
from tests.mbrl.runs import lines, train_drq


def test_an_agent_learns_in_it_and_goes_on(tmp_path):
    """Bug prevented: Meta-World's name, its four actions or its recorder taken for granted somewhere."""
    overrides = "task_name=tests.mbrl.toy_env:Toy-v0", "num_train_frames=60", "num_eval_episodes=1"
    assert train_drq(tmp_path, *overrides) == 0
    assert train_drq(tmp_path, *overrides, "num_train_frames=72") == 0
    assert [line["frame"] for line in lines(tmp_path, "train")] == [12, 24, 36, 48, 60, 72]
    assert "success_rate" in lines(tmp_path, "eval")[-1]


def test_an_agent_learns_in_one_that_only_renders(tmp_path):
    """Bug prevented: pictures of another size, or a name with a colon that no folder or setting takes."""
    overrides = "task=gym:Reacher-v5", "num_train_frames=36", "num_eval_episodes=1", "eval_every_frames=36"
    assert train_drq(tmp_path, *overrides) == 0
    assert [line["frame"] for line in lines(tmp_path, "train")] == [12, 24, 36]
    assert lines(tmp_path, "eval")[-1]["success_rate"] == 0


@pytest.mark.parametrize("task", ["no_such_module:Toy-v0", "tests.mbrl.toy_env:Joy-v0"])
def test_what_is_not_registered_is_the_users_error(task):
    with pytest.raises(UserError, match=f"no environment {task}: .*(no_such_module|Joy)"):
        EnvSettings(task).make()


class Faulty(gymnasium.Env):
    """Fails in the method that its id names."""

    observation_space, action_space = Box(0, 255, (64, 64, 3), np.uint8), Box(-1, 1, (2,), np.float32)
    metadata, render_mode = {"render_modes": ["rgb_array"]}, "rgb_array"

    def __init__(self, fault: str, **arguments: object) -> None:
        self.fault = fault
        self.fail_if("init")

    def fail_if(self, fault: str) -> None:
        if self.fault == fault:
            raise KeyError("table")

    def reset(self, *, seed=None, options=None):
        self.fail_if("reset")
        return self.render() if self.fault == "old-reset" else (self.render(), {})

    def step(self, action):
        self.fail_if("step")
        info = {} if self.fault == "silent" else {"success": False}
        ends = (False,) if self.fault == "old-step" else (False, False)
        return self.render(), 0.0, *ends, info

    def render(self):
        self.fail_if("render")
        return np.zeros((64, 64, 3), np.uint8)

    def scripted_policy(self):
        self.fail_if("script")
        return partial(self.fail_if, "act")


FAULTS = {
    "init": "no environment .*KeyError: 'table'",
    "reset": r"reset: KeyError: 'table' in line \d+ of .*test_registered_env.py; it is called with seed= and options=",
    "step": r"step: KeyError: 'table' in line \d+ of .*test_registered_env.py; it is called with an action",
    "render": r"KeyError: 'table' in line \d+ of .*test_registered_env.py",
    "script": r"scripted_policy: KeyError: 'table' in line \d+ of",
    "act": r"scripted.*: KeyError: 'table' in line \d+ of",
    "old-reset": "reset returned ndarray, expected observation, info",
    "old-step": "step returned 4 values, expected observation, reward, terminated, truncated, info",
    "silent": 'Faulty has no "success" in the info of a step',
}
for fault in FAULTS:
    gymnasium.register(f"{fault}-v0", Faulty, kwargs={"fault": fault})


def play_faulty(task: str) -> None:
    env = EnvSettings(task).make().env
    env.reset(seed=0)
    scripted(getattr(env, "inner", env).unwrapped)([])
    play_episode(env, lambda frames: np.zeros(2), seed=0, num_steps=2)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_an_environment_does_wrong_is_one_line(fault):
    """It was a traceback through ours."""
    with pytest.raises(UserError, match=FAULTS[fault]):
        play_faulty(f"{__name__}:{fault}-v0")


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "silent"])
def test_what_a_rendered_environment_does_wrong_is_one_line(fault):
    with pytest.raises(UserError, match=FAULTS[fault]):
        play_faulty(f"gym:{__name__}:{fault}-v0")


def test_an_environment_that_takes_other_arguments():
    """Python's own error named a keyword of a constructor, after a traceback."""
    with pytest.raises(UserError, match="must take image_size and action_repeat"):
        EnvSettings("gymnasium.envs.classic_control:Pendulum-v1").make()
