import numpy as np
import pytest
import torch

from inference.utils import NPZParser
from ivideogpt.errors import UserError
from tests.data.synthetic import numbered_frames, write_episode


@pytest.fixture
def path(tmp_path):
    return write_episode(tmp_path / "episode.npz", 40)


def starts(parser, path, dataset_name=None, seeds=200):
    found = set()
    for seed in range(seeds):
        np.random.seed(seed)
        found.add(parser.parse_segment(path, dataset_name).indices[0])
    return found


def test_frames_and_actions_of_one_segment(path):
    np.random.seed(0)
    frames, actions = NPZParser(16, image_size=8).parse(path, "metaworld", load_action=True)
    assert frames.shape == (16, 3, 8, 8)
    assert frames.dtype == actions.dtype == torch.float32
    numbers = (frames[:, 0, 0, 0] * 255).round()
    assert numbers.diff().eq(1).all()
    assert torch.equal(actions[:, 0], numbers)


def test_numpys_legacy_seed_decides_the_segment_with_its_first_draw(path):
    np.random.seed(3)
    expected = np.random.randint(0, 40 - 16 + 1)
    np.random.seed(3)
    assert NPZParser(16, 8).parse_segment(path).indices[0] == expected


def test_every_segment_that_fits_can_come(path):
    assert starts(NPZParser(16, 8), path) == set(range(25))


def test_native_steps_are_shrunk_to_the_episode(path):
    assert set(np.diff(NPZParser(4, 8).parse_segment(path, "toto").indices)) == {10}
    assert set(np.diff(NPZParser(10, 8).parse_segment(path, "toto").indices)) == {4}
    assert starts(NPZParser(4, 8), path, "bridge") == set(range(33))


def test_a_step_that_is_asked_for_replaces_the_datasets(path):
    assert set(np.diff(NPZParser(4, 8).parse_segment(path, "toto", step=3).indices)) == {3}
    assert set(np.diff(NPZParser(4, 8).parse_segment(path, step=20).indices)) == {10}


def test_actions_and_rewards_only_if_asked_for(path):
    assert NPZParser(4, 8).parse(path, None)[1] is None
    segment = NPZParser(4, 8).parse_segment(path, load_reward=True)
    assert segment.rewards.tolist() == list(segment.indices)


def test_frames_are_only_resized(tmp_path):
    path = write_episode(tmp_path / "wide.npz", 20, size=(6, 12))
    frames, _ = NPZParser(4, 8).parse(path, "tfds_robonet")
    assert frames.shape == (4, 3, 8, 8)


def test_the_datasets_camera_is_read(tmp_path):
    path = write_episode(tmp_path / "episode.npz", 20, image=None, rgb=numbered_frames(20))
    assert NPZParser(4, 8).parse(path, "language_table")[0].shape == (4, 3, 8, 8)
    with pytest.raises(UserError, match=r"no image array 'image'.*rgb"):
        NPZParser(4, 8).parse(path, "bridge")


@pytest.mark.parametrize(
    ("options", "arrays", "message"),
    [
        (dict(), dict(num_frames=9), "9 frames, fewer than the segment's 10"),
        (dict(load_action=True), dict(action=None), "no array 'action'"),
        (dict(load_action=True, action_dim=7), dict(), "2 dimensions, expected 7"),
        (dict(load_action=True), dict(action=np.full((20, 2), np.nan)), "NaN"),
        (dict(load_action=True), dict(action=np.ones((17, 2))), "17 rows for 20 frames"),
    ],
)
def test_what_cannot_be_predicted_from_is_refused(tmp_path, options, arrays, message):
    path = write_episode(tmp_path / "episode.npz", **arrays)
    with pytest.raises(UserError, match=message):
        NPZParser(10, 8).parse_segment(path, **options)
