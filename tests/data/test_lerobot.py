"""The reader on folders that are written without our writer; see lerobot_folder.py."""

import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ivideogpt.data import parquet_files, video_files
from ivideogpt.data.lerobot import LeRobotEpisodes
from ivideogpt.errors import UserError
from tests.data.lerobot_folder import FRONT, HEIGHT, LENGTHS, WIDTH, WRIST, actions, level, rewards, write_folder

CODEC_ERROR = 1.5


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("lerobot") / "videos")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("lerobot") / "images", stored="image")


def shown(frames: np.ndarray) -> np.ndarray:
    """The grey level of each frame."""
    return frames.reshape(len(frames), -1).mean(axis=1)


@pytest.mark.parametrize("stored", ["videos", "images"])
@pytest.mark.parametrize("camera", [FRONT, WRIST])
def test_frames_actions_and_rewards_are_those_asked_for(stored, camera, request):
    """A frame off by one, or of the episode before, looks right and trains a wrong model."""
    episodes = LeRobotEpisodes.open_folder(request.getfixturevalue(stored), camera)
    rng = np.random.default_rng(0)
    assert len(episodes) == len(LENGTHS)
    for number in (4, 0, 3, 1, 2):
        episode = episodes.open(number)
        assert episode.num_frames == LENGTHS[number]
        assert episode.frame_size == (HEIGHT, WIDTH)
        assert (episode.action_dim, episode.has_rewards) == (3, True)
        last = LENGTHS[number] - 1
        for indices in (np.arange(last + 1), np.array([last]), np.array([0, last, 0]), rng.permutation(last)):
            frames = episode.read(indices)
            assert frames.dtype == np.uint8
            assert frames.shape == (len(indices), HEIGHT, WIDTH, 3)
            wanted = [level(number, int(i), camera) for i in indices]
            np.testing.assert_allclose(shown(frames), wanted, atol=CODEC_ERROR)
            np.testing.assert_array_equal(episode.actions(indices), actions(number)[indices])
            np.testing.assert_array_equal(episode.rewards(indices), rewards(number)[indices])


def test_the_first_camera_by_name_is_the_default(videos):
    assert LeRobotEpisodes.open_folder(videos).camera.key == FRONT


def test_a_single_action_is_a_plain_column(tmp_path):
    """Features of shape [1] are not stored as lists."""
    episode = LeRobotEpisodes.open_folder(write_folder(tmp_path / "data", "image", scalar_actions=True)).open(1)
    np.testing.assert_array_equal(episode.actions(np.array([3, 1])), [[3], [1]])


def test_a_folder_without_actions_or_rewards(videos, tmp_path):
    folder = copy_of(videos, tmp_path)
    edit_info(folder, lambda info: [info["features"].pop(key) for key in ("action", "next.reward")])
    episode = LeRobotEpisodes.open_folder(folder).open(0)
    assert (episode.action_dim, episode.has_rewards) == (None, False)
    assert episode.actions(np.arange(2)) is None
    assert episode.rewards(np.arange(2)) is None


def test_channels_may_come_first_in_the_shape(videos, tmp_path):
    folder = copy_of(videos, tmp_path)

    def turn(info):
        info["features"][FRONT] |= {"shape": [3, HEIGHT, WIDTH], "names": ["channels", "height", "width"]}
        info["features"][WRIST] |= {"shape": [3, HEIGHT, WIDTH], "names": None}

    edit_info(folder, turn)
    for camera in (FRONT, WRIST):
        assert LeRobotEpisodes.open_folder(folder, camera).open(0).frame_size == (HEIGHT, WIDTH)


def read_in_child(episodes, number, answers):
    for other in (0, 4, number):  # of two video files
        frames = episodes.open(other).read(np.arange(LENGTHS[other]))
    answers.put(shown(frames))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_travels_to_workers(videos, method, monkeypatch):
    """Workers that share the parent's open video read each other's frames, or wait for its threads for ever when they
    close it; and an open video cannot be pickled."""
    monkeypatch.setattr(video_files, "_OPEN_VIDEOS", 1)
    episodes = LeRobotEpisodes.open_folder(videos)
    episodes.open(1).read(np.array([2]))
    assert len(pickle.dumps(episodes)) < 5000
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=read_in_child, args=(episodes, 1, answers))
    child.start()
    ours = shown(episodes.open(1).read(np.arange(LENGTHS[1])))
    np.testing.assert_array_equal(answers.get(timeout=60), ours)
    child.join()


def test_columns_kept_are_limited(images, monkeypatch):
    """A worker that keeps every table it has seen fills the memory of the machine over a long run."""
    recent = parquet_files._Recent(200)
    monkeypatch.setattr(parquet_files, "_recent", recent)
    episodes = LeRobotEpisodes.open_folder(images)
    for number in range(len(LENGTHS)):
        np.testing.assert_array_equal(episodes.open(number).rewards(np.array([2])), rewards(number)[2:3])
        assert sum(array.nbytes for array in recent._arrays.values()) <= 200


def copy_of(folder: Path, into: Path) -> Path:
    """A copy that may be changed: files are links, so that only what a test writes anew differs."""
    copy = into / "copy"
    for path in folder.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return copy


def edit_info(folder: Path, edit) -> None:
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    edit(info)
    path.write_text(json.dumps(info))


def truncate(path: Path, part: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])


def test_other_versions_are_refused(tmp_path):
    folder = write_folder(tmp_path / "old", "image", version="v2.1")
    with pytest.raises(UserError, match=r"LeRobot format v2.1; expected v3.0; convert .*convert_dataset_v21_to_v30"):
        LeRobotEpisodes.open_folder(folder)
    edit_info(folder, lambda info: info.pop("codebase_version"))
    with pytest.raises(UserError, match=r"codebase_version is None; expected v3.0"):
        LeRobotEpisodes.open_folder(folder)


def test_folders_that_do_not_fit_are_named(videos, tmp_path):
    with pytest.raises(UserError, match=r"no LeRobot folder, there is no .*info.json"):
        LeRobotEpisodes.open_folder(tmp_path)
    with pytest.raises(UserError, match=f"no camera top; it has {FRONT}, {WRIST}"):
        LeRobotEpisodes.open_folder(videos, "top")
    folder = copy_of(videos, tmp_path)
    (folder / "meta/info.json").write_text("{")
    with pytest.raises(UserError, match=r"info.json: not readable as JSON"):
        LeRobotEpisodes.open_folder(folder)


def test_damaged_files_are_named(videos, tmp_path):
    """One broken file of a large dataset must not end in a traceback of a library, nor in pictures of another frame."""
    folder = copy_of(videos, tmp_path)
    video = folder / f"videos/{FRONT}/chunk-000"
    truncate(video / "file-000.mp4", 0.5)
    (video / "file-001.mp4").unlink()
    truncate(folder / "data/chunk-000/file-000.parquet", 0.5)
    episodes = LeRobotEpisodes.open_folder(folder)
    with pytest.raises(UserError, match=r"file-000.parquet: missing, truncated or not a parquet file"):
        episodes.open(0).actions(np.arange(2))
    with pytest.raises(UserError, match=r"file-000.mp4: missing, damaged or not a video"):
        episodes.open(2).read(np.arange(2))
    with pytest.raises(UserError, match=r"file-001.mp4: missing, though meta/episodes"):
        episodes.open(3)


def test_a_video_shorter_than_its_episodes_is_named(videos, tmp_path):
    folder = copy_of(videos, tmp_path)
    video = folder / f"videos/{FRONT}/chunk-000"
    (video / "file-000.mp4").write_bytes((video / "file-001.mp4").read_bytes())
    episodes = LeRobotEpisodes.open_folder(folder)
    with pytest.raises(UserError, match=r"file-000.mp4: no frame at 2.300 s"):
        episodes.open(2).read(np.array([4]))


def test_rows_of_another_episode_are_refused(videos, tmp_path):
    """Bug prevented: data files and meta/episodes of different versions of a dataset give actions of other frames."""
    folder = copy_of(videos, tmp_path)
    data = folder / "data/chunk-000"
    (data / "file-000.parquet").write_bytes((data / "file-001.parquet").read_bytes())
    with pytest.raises(UserError, match="rows 0 to 6 are not those of episode 0"):
        LeRobotEpisodes.open_folder(folder).open(0).actions(np.arange(2))


def test_actions_of_another_dimension_than_declared_are_refused(videos, tmp_path):
    folder = copy_of(videos, tmp_path)
    edit_info(folder, lambda info: info["features"]["action"].update(shape=[4]))
    with pytest.raises(UserError, match=r"column 'action' holds 57 values .* in 19 rows; expected 4 numbers a row"):
        LeRobotEpisodes.open_folder(folder).open(0).actions(np.arange(2))


def test_frames_of_another_size_than_declared_are_refused(videos, tmp_path):
    folder = copy_of(videos, tmp_path)
    edit_info(folder, lambda info: info["features"][FRONT].update(shape=[16, 16, 3]))
    with pytest.raises(UserError, match=r"have size \(32, 48\), but meta/info.json says \(16, 16\)"):
        LeRobotEpisodes.open_folder(folder).open(0).read(np.arange(2))


def test_actions_that_are_no_numbers_are_refused(images, tmp_path):
    """One NaN turns a whole model into NaN."""
    folder = copy_of(images, tmp_path)
    path = folder / "data/chunk-000/file-001.parquet"
    table = pq.read_table(path)
    values = np.stack(table["action"].to_pylist()).astype(np.float32)
    values[2, 1] = np.nan
    spoiled = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), from_pandas=True), 3)
    pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", spoiled), path)
    episodes = LeRobotEpisodes.open_folder(folder)
    with pytest.raises(UserError, match=r"#2: 'action' holds NaN or infinite values \(first in row 2\)"):
        episodes.open(2).actions(np.arange(2))
    np.testing.assert_array_equal(episodes.open(3).actions(np.arange(2)), actions(3)[:2])
