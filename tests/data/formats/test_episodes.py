import os
import struct
import zipfile

import numpy as np
import pytest

from ivideogpt.data.formats.episodes import NpzEpisodes, Subset, check_carries, keep_some, open_episode, pack_strings
from ivideogpt.errors import UserError
from tests.data.synthetic import numbered_frames, write_episode

PICKED = np.array([3, 3, 0, 19, 7])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "episode.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_frames_actions_and_rewards_are_those_asked_for(path, save, layout):
    """Reading at the wrong place inside the zip gives plausible pictures of other frames."""
    frames = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    write_episode(path, 20, save=save, image=layout(frames))
    episode = open_episode(path)
    assert episode.num_frames == 20
    assert episode.frame_size == (6, 5)
    assert episode.action_dim == 2
    np.testing.assert_array_equal(episode.read(PICKED), frames[PICKED])
    np.testing.assert_array_equal(episode.actions(PICKED)[:, 0], PICKED)
    np.testing.assert_array_equal(episode.rewards(PICKED), PICKED)


def test_frames_read_are_the_callers_own(path):
    """A view into the memory map would crash on writing, or change when the file does."""
    write_episode(path)
    frames = open_episode(path).read(np.arange(3))
    frames[:] = 0
    assert open_episode(path).read(np.arange(3)).max() == 2


def test_extra_fields_of_the_local_header_are_skipped(path):
    """The local header's extra field may differ in length from the central directory's, where zipfile looks."""
    write_episode(path, action=None, reward=None)
    data = bytearray(path.read_bytes())
    name_length, extra_length = struct.unpack_from("<HH", data, 26)
    padding = struct.pack("<HH", 0xFFFF, 4) + b"1234"
    at = 30 + name_length + extra_length
    data[at:at] = padding
    struct.pack_into("<H", data, 28, extra_length + len(padding))
    end = data.rindex(b"PK\x05\x06")
    struct.pack_into("<I", data, end + 16, struct.unpack_from("<I", data, end + 16)[0] + len(padding))
    path.write_bytes(data)
    np.testing.assert_array_equal(open_episode(path).read(PICKED), numbered_frames(20)[PICKED])


def test_actions_one_short_are_padded_with_a_zero_row(path):
    write_episode(path, 20, action=np.ones((19, 4)))
    actions = open_episode(path).actions(np.array([18, 19]))
    np.testing.assert_array_equal(actions, [[1, 1, 1, 1], [0, 0, 0, 0]])
    assert actions.dtype == np.float32


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_episode_of_one_frame_needs_no_action(path, save):
    write_episode(path, 1, save=save, action=np.zeros((0, 4)), reward=None)
    np.testing.assert_array_equal(open_episode(path).actions(np.zeros(2, int)), np.zeros((2, 4)))


def test_rewards_may_be_a_column(path):
    write_episode(path, 20, reward=np.arange(20.0)[:, None])
    np.testing.assert_array_equal(open_episode(path).rewards(PICKED), PICKED)


def test_successes_are_positive_numbers_a_frame(path):
    """One number an episode under this name stopped nothing before, and stops nothing now."""
    success = np.arange(20) > 17
    for stored in (success, success[:, None], success[:-1], np.where(success, 3.0, -1.0)):
        episode = open_episode(write_episode(path, success=stored))
        assert episode.has_successes
        assert episode.successes(np.array([17, 18])).tolist() == [0, 1]
    for stored in (np.array(True), np.ones(7), np.array(["no"] * 20), np.array([None] * 20), None):
        episode = open_episode(write_episode(path, success=stored))
        assert not episode.has_successes
        assert episode.successes(np.array([0])) is None
        episode.verify()


def test_absent_actions_and_rewards_are_none(path):
    write_episode(path, action=None, reward=None)
    episode = open_episode(path)
    assert episode.actions(PICKED) is None
    assert episode.rewards(PICKED) is None
    with pytest.raises(UserError, match="no array 'action'"):
        check_carries(episode, actions=True)
    with pytest.raises(UserError, match="no array 'reward'"):
        check_carries(episode, rewards=True)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_int64_frames_are_accepted(path, save):
    write_episode(path, save=save, image=numbered_frames(20).astype(np.int64))
    frames = open_episode(path).read(PICKED)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, numbered_frames(20)[PICKED])


def test_a_changed_file_is_read_anew(path):
    write_episode(path, 20)
    assert open_episode(path).num_frames == 20
    write_episode(path, 30)
    assert open_episode(path).num_frames == 30


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(image=None, front=numbered_frames(3)), r"no image array 'image'.*front \(3, 8, 8, 3\) uint8"),
        (dict(image=numbered_frames(20).transpose(0, 3, 1, 2)), r"shape \(20, 3, 8, 8\).*channels last"),
        (dict(image=numbered_frames(20)[0]), r"shape \(8, 8, 3\)"),
        (dict(image=numbered_frames(0)), "N at least 1"),
        (dict(image=numbered_frames(20) / 255), "float64; expected uint8"),
        (dict(image=numbered_frames(20).astype(object)), "pickled Python objects"),
    ],
)
def test_frames_that_do_not_fit_are_refused_at_once(path, arrays, message):
    write_episode(path, **arrays)
    with pytest.raises(UserError, match=message):
        open_episode(path)


def test_whole_numbers_outside_of_8_bits_are_refused(path):
    write_episode(path, image=numbered_frames(20).astype(np.int64) + 250)
    with pytest.raises(UserError, match=r"values from 250 to 269.*0\.\.255"):
        open_episode(path).read(PICKED)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(action=np.ones((18, 2))), "18 rows for 20 frames; expected 20, or 19"),
        (dict(action=np.ones((21, 2))), "21 rows for 20 frames"),
        (dict(action=np.ones(20)), r"shape \(20,\); expected numbers of shape \(N, D\)"),
        (dict(action=np.full((20, 2), np.nan)), "'action' holds NaN"),
        (dict(action=np.full((20, 2), "left")), "expected numbers"),
        (dict(action=np.full((20, 2), None)), "pickled Python objects"),
    ],
)
def test_actions_that_do_not_fit_are_refused_where_they_are_needed(path, arrays, message):
    write_episode(path, **arrays)
    episode = open_episode(path)
    episode.read(PICKED)
    with pytest.raises(UserError, match=message):
        episode.actions(PICKED)


def test_another_action_dimension_is_refused(path):
    write_episode(path)
    with pytest.raises(UserError, match="2 dimensions, expected 4"):
        check_carries(open_episode(path), actions=True, action_dim=4)


def test_rewards_that_do_not_fit_are_refused(path):
    write_episode(path, reward=np.ones((20, 2)))
    with pytest.raises(UserError, match=r"'reward' is float64 of shape \(20, 2\)"):
        open_episode(path).rewards(PICKED)


def test_the_checksum_is_that_of_what_clips_hold(path):
    """A token store would go on with an episode that has been written again."""
    arrays = dict(reward=np.arange(20), success=np.zeros(20), notes=np.zeros(3))
    checksum = open_episode(write_episode(path, **arrays)).content_checksum()
    for same in (dict(notes=np.ones(3)), dict(save=np.savez_compressed)):
        assert open_episode(write_episode(path, **arrays | same)).content_checksum() == checksum
    for other in (
        dict(action=np.zeros((20, 2))),
        dict(reward=np.zeros(20)),
        dict(success=np.ones(20)),
        dict(success=None),
        dict(image=numbered_frames(20)[::-1]),
    ):
        assert open_episode(write_episode(path, **arrays | other)).content_checksum() != checksum


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_files_are_refused(path, save):
    write_episode(path, save=save, image=np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="truncated or not an npz"):
            open_episode(path)


def test_a_damaged_stream_is_refused(path):
    write_episode(path, save=np.savez_compressed, action=None, reward=None)
    data = bytearray(path.read_bytes())
    data[90:140] = b"\xff" * 50
    path.write_bytes(data)
    with pytest.raises(UserError, match="truncated or not an npz"):
        open_episode(path).read(PICKED)


def test_a_missing_file_is_named(path):
    with pytest.raises(UserError, match=r"episode\.npz: cannot be read \(no such file"):
        open_episode(path)


def test_the_directory_of_a_file_is_parsed_once(path, monkeypatch):
    write_episode(path)
    open_episode(path)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("parsed again"))
    open_episode(path).read(PICKED)


def test_subsets_keep_numbers_and_names_together():
    episodes = NpzEpisodes([f"{i:03d}" for i in range(100)])
    some = Subset(Subset(episodes, range(50, 100)), [3, 1])
    assert [some.name(i) for i in range(len(some))] == ["053", "051"]
    with pytest.raises(UserError, match="053: cannot be read"):
        some.open(0)


def test_dataset_size_keeps_distinct_episodes_the_same_every_time():
    """Drawing with replacement left fewer episodes than the few-shot experiment said."""
    episodes = NpzEpisodes([f"{i:03d}" for i in range(100)])
    kept = names(keep_some(episodes, 40))
    assert len(set(kept)) == 40
    assert kept == sorted(kept)
    assert kept == names(keep_some(episodes, 40))
    assert kept != names(episodes)[:40]
    assert keep_some(episodes, None) is keep_some(episodes, 1000) is episodes


def names(episodes):
    return [episodes.name(i) for i in range(len(episodes))]


def test_packed_strings_are_the_strings(tmp_path):
    strings = ["", "a", "Straße", "b\udcff", str(tmp_path)]
    assert [os.fsdecode(string) for string in pack_strings(strings)] == strings
    assert len(pack_strings([])) == 0
