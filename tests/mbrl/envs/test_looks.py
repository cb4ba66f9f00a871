"""Looks of Meta-World that vary: what is seen differs, what happens does not."""

from __future__ import annotations

import numpy as np
import pytest

from ivideogpt.errors import UserError
from mbrl.envs.env_settings import EnvSettings
from mbrl.envs.looks import FACTORS
from mbrl.envs.metaworld_env import MetaWorldEnv

pytestmark = pytest.mark.usefixtures("renders")

ACTION = np.array([0.5, -0.5, 0.3, 1], np.float32)


@pytest.fixture(scope="module")
def plain():
    """Yield frame, state and reward of a seed as they usually are."""
    env = MetaWorldEnv("plate-slide", 32)
    frame = env.reset(seed=3)[0]
    yield frame, env.step(ACTION)[1], env.state.copy()
    env.close()


@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_is_seen_and_changes_nothing_else(plain, factor):
    """Bug prevented: looks that move the robot, stay from one episode to the next, or are no function of the seed."""
    frame, reward, state = plain
    env = MetaWorldEnv("plate-slide", 32, vary=(factor,))
    first = env.reset(seed=3)[0]
    assert np.abs(first.astype(int) - frame).max() > 20
    assert env.step(ACTION)[1] == reward
    np.testing.assert_array_equal(env.state, state)
    other = env.reset(seed=4)[0]
    assert np.abs(other.astype(int) - first).max() > 20
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)
    env.close()


@pytest.mark.parametrize(("task", "channel"), [("push", 0), ("shelf-place", 2)])
def test_objects_with_a_colour_of_their_own_change_it(task, channel):
    """A red part's own colour hides that of its material, and a blue one has none: both looked as ever."""
    env, plain = MetaWorldEnv(task, 64, vary=("colours",)), MetaWorldEnv(task, 64)
    before, after = (each.reset(seed=1)[0].astype(int) for each in (plain, env))
    others = np.delete(before, channel, axis=-1).max(axis=-1)
    is_object = (before[..., channel] > 60) & (others < 3)
    assert 0 < is_object.sum() < 30
    assert (np.abs(after - before).max(axis=-1)[is_object] > 20).all()
    env.close()
    plain.close()


def test_a_snapshot_keeps_the_looks():
    """Bug prevented: a resumed episode that goes on in other colours."""
    settings = EnvSettings("plate-slide", image_size=16, duration=3, vary=FACTORS)
    env, restored = settings.make(), settings.make()
    env.reset(seed=1)
    restored.reset(seed=2)
    restored.restore(env.snapshot())
    np.testing.assert_array_equal(restored.step(ACTION)[0], env.step(ACTION)[0])
    env.close()
    restored.close()


def test_what_does_not_vary():
    with pytest.raises(UserError, match="no factor of variation named 'sound'; there are light, colours"):
        MetaWorldEnv("plate-slide", 16, vary=("sound",))
