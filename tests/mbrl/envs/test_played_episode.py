"""Episodes of any environment under any policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ivideogpt.errors import UserError
from mbrl.envs.played_episode import play_episode
from tests.mbrl.toy_env import Toy


class Short(Toy):
    """Ends after two steps, as environments with a time limit do."""

    def reset(self, **arguments: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.left = 2
        return super().reset(**arguments)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, self.left == 0, info


def test_rows_are_in_step():
    """An action beside the frame it led to would teach a model that effects come first."""
    episode = play_episode(Toy(16, 2), lambda frames: np.array([len(frames), -len(frames)]) / 4, 0, 3)
    assert len(episode.observations) == 4
    assert episode.actions.tolist() == [[0.25, -0.25], [0.5, -0.5], [0.75, -0.75]]
    assert episode.rewards.shape == episode.successes.shape == (3,)
    assert np.abs(play_episode(Toy(16, 2), lambda frames: np.full(2, 9), 0, 1).actions).max() == 1


@pytest.mark.parametrize("action", [np.zeros(3), np.zeros((1, 2)), np.full(2, np.nan)], ids=["3-D", "batch", "NaN"])
def test_policies_that_give_no_action(action):
    """Simulators take NaN, and anything that broadcasts."""
    with pytest.raises(UserError, match="expected 2 finite numbers"):
        play_episode(Toy(16, 2), lambda frames: action, 0, 1)


def test_environments_that_end_early():
    """What they return after their end means nothing, and planning went on with it."""
    assert len(play_episode(Short(16, 2), lambda frames: np.zeros(2), 0, 2).actions) == 2
    with pytest.raises(UserError, match="ended its episode after 2 of 3 agent steps"):
        play_episode(Short(16, 2), lambda frames: np.zeros(2), 0, 3)
