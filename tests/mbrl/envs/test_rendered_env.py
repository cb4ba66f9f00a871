"""Environments of gymnasium that this project knows nothing of, seen as they render themselves."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.utils.env_checker import check_env

from ivideogpt.errors import UserError
from mbrl.envs.env_settings import EnvSettings
from mbrl.envs.rendered_env import RenderedEnv


class Dial(gymnasium.Env):
    """Wide pictures whose left half is as bright as the dial; an action turns it. It breaks at 200."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = Box(-np.inf, np.inf, (1,))
    render_mode = "rgb_array"

    def __init__(self, render_mode: str, action_space: gymnasium.Space) -> None:
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.dial = float(self.np_random.integers(100))
        return np.array([self.dial], np.float32), {}

    def step(self, action):
        self.taken = action
        self.dial += float(np.sum(action)) + self.np_random.random()
        success = {"is_success": self.dial > 150}
        return np.array([self.dial], np.float32), 1.0, self.dial > 200, False, success

    def render(self):
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[:, :30] = int(np.clip(self.dial, 0, 255))
        return picture


BOUNDS = Box(np.array([0, -10], np.float32), np.array([10, 30], np.float32))


class Unseen(Dial):
    def render(self):
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")


class Floats(Dial):
    def render(self):
        return super().render() / 255


gymnasium.register("Floats-v0", Floats, kwargs={"action_space": BOUNDS})
gymnasium.register("Unseen-v0", Unseen, kwargs={"action_space": BOUNDS})
gymnasium.register("Dial-v0", Dial, max_episode_steps=3, kwargs={"action_space": BOUNDS})
gymnasium.register("Choice-v0", Dial, kwargs={"action_space": Discrete(3, start=5)})
gymnasium.register("Dictionary-v0", Dial, kwargs={"action_space": Dict(x=BOUNDS)})


def test_gymnasium_accepts_it():
    check_env(RenderedEnv("Dial-v0"), skip_render_check=True)


def test_pictures_that_need_another_package():
    with pytest.raises(UserError, match=r"Unseen-v0, render: pygame is not installed$"):
        RenderedEnv("Unseen-v0").reset(seed=0)


def test_pictures_of_floats():
    with pytest.raises(UserError, match=r"Floats-v0 renders float64 of shape \(40, 60, 3\), expected pictures"):
        RenderedEnv("Floats-v0").reset(seed=0)


@pytest.mark.parametrize("action", [4, 8, 5.5, None, [1, 2], "5"])
def test_choices_that_there_are_not(action):
    """Bug prevented: a choice beyond the last one became the first."""
    with pytest.raises(UserError, match=r"a policy wants the action .*, expected one of Discrete\(3, start=5\)"):
        RenderedEnv("Choice-v0").from_inner(action)


def test_actions_frames_and_repeats():
    """Bug prevented: actions that reach the environment in other units than its own, or past its limit of steps."""
    env = RenderedEnv("Dial-v0", image_size=20, action_repeat=2)
    frame, _ = env.reset(seed=3)
    assert frame.shape == (20, 20, 3)
    assert frame[10, 4, 0] == int(env.state[0])
    assert frame[10, 15, 0] == 0
    _, reward, *_ = env.step(np.array([0, -0.5], np.float32))
    np.testing.assert_allclose(env.inner.unwrapped.taken, [5, 0])
    assert reward == 2
    for _ in range(3):
        ends = env.step(np.array([-1, -0.5], np.float32))[2:4]
    assert ends == (False, False)
    for _ in range(2):
        _, reward, *ends, info = env.step(np.array([1, 1], np.float32))
    assert (reward, ends, info) == (1, [True, False], {"success": True})
    for action in ([0, -10], [2.5, 0], [10, 30]):
        own = np.array(action, np.float32)
        np.testing.assert_allclose(env.to_inner(env.from_inner(own)), own, atol=1e-5)


def test_choices_are_vectors_whose_highest_number_counts():
    """Bug prevented: a choice taken as an amount, or counted from zero where the space does not."""
    env = RenderedEnv("Choice-v0")
    assert env.action_space.shape == (3,)
    assert env.to_inner(np.array([-0.2, 0.3, 0.1])) == 6
    assert env.from_inner(7).tolist() == [-1, -1, 1]
    env.reset(seed=0)
    env.step(env.from_inner(5))
    assert env.inner.unwrapped.taken == 5


def test_an_agent_sees_the_end_and_a_restored_episode_goes_on():
    """Bug prevented: a resumed run that goes on in another episode."""
    settings = EnvSettings("gym:tests.mbrl.envs.test_rendered_env:Dial-v0", image_size=16, action_repeat=1, duration=6)
    env, restored = settings.make(), settings.make()
    env.reset(seed=1)
    actions = np.linspace(0.3, 1, 12, dtype=np.float32).reshape(6, 2)
    for action in actions[:3]:
        env.step(action)
    restored.restore(env.snapshot())
    steps = [(env.step(action), restored.step(action)) for action in actions[3:]]
    for ours, theirs in steps:
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]
    rewards = [ours[1] for ours, _ in steps]
    assert rewards[0] > 0  # it broke later
    assert rewards[-1] == 0


def test_what_cannot_be_seen_or_steered():
    with pytest.raises(UserError, match="no environment No-v0 that renders pictures"):
        RenderedEnv("No-v0")
    with pytest.raises(UserError, match=r"takes actions of Dict.*: expected a vector of bounded numbers"):
        RenderedEnv("Dictionary-v0")
