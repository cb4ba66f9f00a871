"""Environments that are registered from outside the project."""

from __future__ import annotations

import pytest

from ivideogpt.errors import UserError
from mbrl.envs.env_settings import EnvSettings
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


def test_an_environment_that_takes_other_arguments():
    """Python's own error named a keyword of a constructor, after a traceback."""
    with pytest.raises(UserError, match="must take image_size and action_repeat"):
        EnvSettings("gymnasium.envs.classic_control:Pendulum-v1").make()
