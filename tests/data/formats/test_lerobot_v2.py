"""The reader on folders of version 2.1, where an episode has files of its own; see lerobot_v2_folder.py."""

import json
import logging

import numpy as np
import pytest

from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.formats import lerobot
from ivideogpt.data.formats.lerobot import LeRobotEpisodes
from ivideogpt.errors import UserError
from tests.data.formats.lerobot_folder import FRONT, LENGTHS, WRIST, actions, level, rewards
from tests.data.formats.lerobot_v2_folder import SIZES, TASKS, write_v2_folder
from tests.data.formats.test_lerobot import CODEC_ERROR, copy_of, edit_info, shown
from tests.real_data import real_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_v2_folder(tmp_path_factory.mktemp("lerobot") / "so100")


@pytest.mark.parametrize("camera", [FRONT, WRIST])
def test_frames_actions_rewards_and_tasks(folder, camera):
    """A frame of the episode before, or of a folder with another thousand of episodes, trains a wrong model."""
    episodes = LeRobotEpisodes.open_folder(folder, camera)
    assert episodes.table.number.tolist() == list(range(len(LENGTHS)))
    for number, length in enumerate(LENGTHS):
        episode = episodes.open(number)
        assert (episode.num_frames, episode.frame_size, episode.action_dim) == (length, SIZES[camera], 3)
        indices = np.array([length - 1, 0, length // 2])
        wanted = [level(number, int(i), camera) for i in indices]
        np.testing.assert_allclose(shown(episode.read(indices)), wanted, atol=CODEC_ERROR)
        np.testing.assert_array_equal(episode.actions(indices), actions(number)[indices])
        np.testing.assert_array_equal(episode.rewards(indices), rewards(number)[indices])
        assert episode.texts().tolist() == [TASKS[number % 2]] * length


def test_what_was_not_downloaded_is_left_out_and_said_once(folder, tmp_path, caplog):
    """Bug prevented: a run that ends at the first episode that its user has not downloaded, or leaves it out in
    silence; numbers that move up behind it."""
    part = copy_of(folder, tmp_path)
    next(part.rglob(f"{FRONT}/episode_000000.mp4")).unlink()
    next(part.rglob("data/*/episode_000003.parquet")).unlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            episodes = LeRobotEpisodes.open_folder(part)
    assert [record.message for record in caplog.records] == [
        f"{part}: left out 2 of 5 episodes, whose files are not there"
    ]
    assert [episodes.name(index) for index in range(len(episodes))] == [f"{part}#{number}" for number in (1, 2, 4)]
    np.testing.assert_array_equal(episodes.open(2).actions(np.arange(6)), actions(4))
    assert episodes.numbered(4).path == f"{part}#4"
    with pytest.raises(UserError, match=f"#0: its files of {FRONT} are not there"):
        episodes.numbered(0)
    assert LeRobotEpisodes.open_folder(part, WRIST).table.number.tolist() == [0, 1, 2, 4]
    for path in part.rglob("*.mp4"):
        path.unlink()
    with pytest.raises(UserError, match=r"none of the 5 episodes of meta/episodes.jsonl has its files, such as .*mp4"):
        LeRobotEpisodes.open_folder(part)


def test_it_trains(folder):
    config = DataConfig(f"lerobot:{folder}", segment=SegmentSpec(length=4), image_size=16, load_action=True)
    batch = next(iter(build_loader(config))).to("cpu")
    assert (batch.frames.shape[1:], batch.actions.shape[1:]) == ((4, 3, 16, 16), (4, 3))
    number, first = batch.actions[:, 0, 1], batch.actions[:, 0, 0]
    np.testing.assert_allclose(batch.frames[:, 0].mean(dim=(1, 2, 3)) * 255, 20 + 40 * number + 3 * first, atol=2)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{", "line 1 is not valid JSON"),
        ("[1]", "line 1 must be one JSON object, and is a list"),
        ("", "none of the 0 episodes"),
        ('{"episode_index": 0}', "gives no number or length for some episodes"),
        ('{"episode_index": "0", "length": 7}', "episode_index in meta/episodes.jsonl holds other than numbers"),
        ('{"episode_index": 0, "length": 6.5}', "length in meta/episodes holds other than whole numbers"),
        ('{"episode_index": 0, "length": 7}\n\n{"episode_index": 0, "length": 7}', "lists an episode twice"),
        (None, r"episodes.jsonl cannot be read: No such file"),
    ],
)
def test_a_damaged_list_of_episodes(folder, tmp_path, lines, message):
    part = copy_of(folder, tmp_path)
    (part / "meta/episodes.jsonl").unlink() if lines is None else (part / "meta/episodes.jsonl").write_text(lines)
    with pytest.raises(UserError, match=message):
        LeRobotEpisodes.open_folder(part)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunks_size": 0}, "chunks_size is 0; expected a whole number"),
        ({"data_path": "data/chunk-{chunk_index:03d}.parquet"}, "expected a path .* episode_chunk and episode_index"),
        ({"video_path": "../{video_key}.mp4"}, "video_path is"),
    ],
)
def test_metadata_is_checked(folder, tmp_path, changes, message):
    part = copy_of(folder, tmp_path)
    edit_info(part, lambda info: info.update(changes))
    with pytest.raises(UserError, match=message):
        LeRobotEpisodes.open_folder(part)


def test_a_list_of_tasks_may_be_missing(folder, tmp_path):
    part = copy_of(folder, tmp_path)
    (part / "meta/tasks.jsonl").unlink()
    assert LeRobotEpisodes.open_folder(part).open(0).texts() is None
    lerobot._tasks.cache_clear()
    (part / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 1, "task": "lift"}))
    assert set(LeRobotEpisodes.open_folder(part).open(0).texts()) == {""}


def test_a_real_partial_download():
    """Two of 100 episodes of a humanoid, in AV1."""
    episodes = LeRobotEpisodes.open_folder(real_data("lerobot_v21_g1"))
    assert (episodes.table.number.tolist(), episodes.table.num_listed) == ([2, 4], 100)
    episode = episodes.open(0)
    assert (episode.num_frames, episode.action_dim) == (343, 26)
    assert episode.read(np.array([0, 1])).shape == (2, 480, 640, 3)
    assert episode.texts()[0] == "Pick up the yellow bottle on the table."
