"""Whether actions stored beside the wrong frames are noticed, and nothing else is taken for that."""

import numpy as np
import pytest

from ivideogpt.data.inspect.alignment import Alignment, estimate_alignment

NUM_EPISODES, NUM_FRAMES = 6, 80


def recording(rng, lag=0, noise=0.3):
    """Motion after each frame and the actions (N, 3), the last a gripper's: action[i] moves image[i] to image[i + 1].

    With a lag the robot answers by so many frames later.
    """
    actions = rng.normal(size=(NUM_FRAMES, 2)) * (0.2 + rng.random((NUM_FRAMES, 1)))
    motion = np.linalg.norm(actions, axis=1)[: NUM_FRAMES - 1]
    motion = np.concatenate([rng.random(lag), motion[: NUM_FRAMES - 1 - lag]])
    gripper = rng.integers(0, 2, (NUM_FRAMES, 1)) * 100.0  # would drown everything else
    return motion + noise * rng.random(NUM_FRAMES - 1), np.concatenate([actions, gripper], axis=1)


def estimate(recordings, stored_late=0):
    motions, actions = zip(*recordings)
    return estimate_alignment(motions, [np.roll(rows, stored_late, axis=0) for rows in actions])


@pytest.fixture
def recordings():
    rng = np.random.default_rng(0)
    return [recording(rng) for _ in range(NUM_EPISODES)]


def test_right_recordings_are_recognised(recordings):
    found = estimate(recordings)
    assert (found.best_shift, found.is_wrong, found.signal) == (0, False, "size")
    assert "as it should be" in found.verdict


@pytest.mark.parametrize("late", [1, 2])
def test_actions_stored_late_are_recognised(recordings, late):
    """Rows that say what led to a frame train a model that answers each action with the change of the one before."""
    found = estimate(recordings, stored_late=late)
    assert (found.best_shift, found.is_wrong) == (late, True)
    assert f"action[i+{late}]" in found.verdict


def test_a_late_robot_is_no_fault(recordings):
    """Every real arm lags behind its commands: a warning about each would teach people to ignore warnings."""
    rng = np.random.default_rng(1)
    found = estimate([recording(rng, lag=1) for _ in range(NUM_EPISODES)])
    assert (found.best_shift, found.is_wrong) == (-1, False)
    assert "no fault seen" in found.verdict


def test_positions_to_go_to_are_compared_by_their_change():
    """The size of a position says nothing about motion."""
    rng = np.random.default_rng(2)
    recordings = []
    for _ in range(NUM_EPISODES):
        targets = 5 + rng.normal(size=(NUM_FRAMES, 2)).cumsum(axis=0)
        motion = np.linalg.norm(np.diff(targets, axis=0, prepend=targets[:1]), axis=1)[:-1]
        recordings.append((motion, targets))
    found = estimate(recordings)
    assert (found.best_shift, found.signal, found.is_clear) == (0, "change", True)
    assert estimate(recordings, stored_late=1).is_wrong


@pytest.mark.parametrize("seed", range(20))
def test_actions_that_say_nothing_about_motion_are_not_called_wrong(seed):
    rng = np.random.default_rng(seed)
    recordings = [(rng.random(NUM_FRAMES - 1), rng.normal(size=(NUM_FRAMES, 3))) for _ in range(3)]
    found = estimate(recordings)
    assert not found.is_wrong
    assert "cannot be told" in found.verdict


@pytest.mark.parametrize("seed", range(5))
def test_one_short_episode_is_not_enough_to_warn(seed):
    found = estimate([recording(np.random.default_rng(seed))], stored_late=1)
    assert not found.is_wrong


@pytest.mark.parametrize(
    ("confidence", "num_blocks", "cause"),
    [
        (1.0, 12, "but 12 stretches of 10 frames tell, where 15 would settle it;"),
        (0.9986, 40, "with a confidence of 99.8% where 99.9% would settle it;"),
    ],
)
@pytest.mark.parametrize("shift", [0, 1])
def test_doubt_names_its_cause(shift, confidence, num_blocks, cause):
    """Bug prevented: "a confidence of 100.0% where 99.9% would settle it", said of too few frames."""
    found = Alignment("size", dict.fromkeys(range(-2, 3), 0.5), shift, confidence, num_blocks)
    assert not found.is_clear
    assert cause in found.verdict


def test_nothing_to_compare():
    still, short = (np.zeros(79), np.ones((80, 2))), (np.ones(3), np.ones((4, 2)))
    assert estimate([still]) is None
    assert estimate([short]) is None
    assert estimate_alignment([], []) is None
