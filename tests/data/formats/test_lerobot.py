"""The reader on folders that are written without our writer; see lerobot_folder.py."""

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ivideogpt.action_spaces import ActionSpace, ActionSpaces
from ivideogpt.data.catalog import dataset_info
from ivideogpt.data.clips.dataset import ClipDataset, DataConfig, PickInOrder, Source, build_sources
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import Preprocess
from ivideogpt.data.formats import parquet_files, video_files
from ivideogpt.data.formats.lerobot import LeRobotEpisodes, LeRobotInfo
from ivideogpt.data.formats.npz_arrays import RecentArrays
from ivideogpt.errors import UserError
from tests.data.formats.lerobot_folder import (
    FRONT,
    HEIGHT,
    LENGTHS,
    WIDTH,
    WRIST,
    actions,
    level,
    rewards,
    write_folder,
)

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


def test_actions_may_have_names(videos, tmp_path):
    """Recorders write them as a list, a list in a list, or under a word; they tell robots of one dimension apart."""
    names = ("x", "y", "grip")
    assert LeRobotEpisodes.open_folder(videos).open(0).action_names == names
    folder = shutil.copytree(videos, tmp_path / "named")
    file = folder / "meta" / "info.json"
    for written, read in (([names], names), ({"motors": names}, names), (["x"], None), (None, None), ({}, None)):
        content = json.loads(file.read_text())
        content["features"]["action"]["names"] = written
        file.write_text(json.dumps(content))
        assert LeRobotEpisodes.open_folder(folder).open(0).action_names == read


def test_robots_whose_actions_have_other_names_are_not_mixed(images, tmp_path):
    """Bug prevented: x,y,grip of one folder and grip,y,x of another in one batch, as if they were the same."""
    one, two = (copy_of(images, tmp_path).rename(tmp_path / name) for name in ("one", "two"))

    def read(**options):
        config = DataConfig(f"lerobot:{one},{two}", segment=SegmentSpec(length=4), image_size=8, **options)
        return len(build_sources(config, "train"))

    assert read(load_action=True) == 2
    edit_info(two, lambda info: info["features"]["action"].update(names=["grip", "y", "x"]))
    with pytest.raises(UserError, match=f"{two}: its actions are grip,y,x, those of {one} are x,y,grip; read one"):
        read(load_action=True)
    assert read() == 2
    spaces = (ActionSpace("arm", 3, datasets=("one", "two")),)
    assert read(load_action=True, action_spaces=ActionSpaces(spaces)) == 2  # the user has said that it is so
    edit_info(two, lambda info: info["features"]["action"].pop("names"))
    assert read(load_action=True) == 2


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
    monkeypatch.setattr(video_files, "_generations", {})
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
    recent = RecentArrays(200)
    monkeypatch.setattr(parquet_files, "_recent", recent)
    episodes = LeRobotEpisodes.open_folder(images)
    for number in range(len(LENGTHS)):
        np.testing.assert_array_equal(episodes.open(number).rewards(np.array([2])), rewards(number)[2:3])
        assert 0 < recent.num_bytes <= 200


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


def edit_episodes(folder: Path, columns: dict[str, list]) -> None:
    """Give columns of meta/episodes other values, all in one file."""
    paths = sorted((folder / "meta/episodes").rglob("*.parquet"))
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, paths[0])
    for path in paths[1:]:
        path.unlink()


def truncate(path: Path, part: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])


def test_other_versions_are_refused(tmp_path):
    folder = write_folder(tmp_path / "old", "image", version="v1.6")
    with pytest.raises(UserError, match=r"codebase_version is 'v1.6'; expected v3.0 or v2.x; convert a copy"):
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
    with pytest.raises(UserError, match=r"info.json is not valid JSON"):
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
    with pytest.raises(UserError, match=r"#2: .*file-000.mp4 .*row 0 has no frame within half a frame of 1.900 s"):
        episodes.open(2).read(np.array([4]))


def test_rows_of_another_episode_are_refused(videos, tmp_path):
    """Bug prevented: data files and meta/episodes of different versions of a dataset give actions of other frames."""
    folder = copy_of(videos, tmp_path)
    data = folder / "data/chunk-000"
    (data / "file-000.parquet").write_bytes((data / "file-001.parquet").read_bytes())
    with pytest.raises(UserError, match=r"file-000.parquet: no rows of episode 0, though meta/episodes says so"):
        LeRobotEpisodes.open_folder(folder).open(0)
    edit_episodes(folder, {"length": [7, 12, 4, 9, 6]})
    with pytest.raises(UserError, match=r"file-001.parquet: has 5 rows of episode 2, not 4 as meta/episodes"):
        LeRobotEpisodes.open_folder(folder).open(2)


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


@pytest.mark.parametrize(("name", "differ"), [("action", [2]), ("next.reward", [2]), ("next.done", [])])
def test_the_checksum_is_that_of_the_numbers_of_a_clip(videos, tmp_path, name, differ):
    """A token store would go on with actions that have been written again."""
    folder = copy_of(videos, tmp_path)
    path = folder / "data/chunk-000/file-001.parquet"
    table = pq.read_table(path)
    column = table[name].to_pylist()
    column[2] = [7.0, 8.0, 9.0] if name == "action" else not column[2]
    place = table.schema.get_field_index(name)
    changed = pa.array(column, table.schema.field(name).type)
    pq.write_table(table.set_column(place, table.schema.field(name), changed), path)
    before, after = (LeRobotEpisodes.open_folder(each) for each in (videos, folder))
    found = [n for n in range(5) if before.open(n).content_checksum() != after.open(n).content_checksum()]
    assert found == differ


def actions_of(folder: Path) -> list[np.ndarray]:
    episodes = LeRobotEpisodes.open_folder(folder)
    opened = [episodes.open(number) for number in range(len(episodes))]
    return [episode.actions(np.arange(episode.num_frames)) for episode in opened]


@pytest.mark.parametrize("files", [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0.0, 0.0, 0.0, 1.0, 1.0]])
def test_an_episode_that_begins_a_data_file_may_carry_the_number_of_the_file_before(images, tmp_path, files):
    """Bug prevented: a known converter writes such numbers; other rows' actions were read, or none. pandas makes floats
    of numbers beside missing ones."""
    folder = copy_of(images, tmp_path)
    edit_episodes(folder, {"data/file_index": files})
    read = actions_of(folder)
    assert [len(values) for values in read] == list(LENGTHS)
    for number, values in enumerate(read):
        np.testing.assert_array_equal(values, actions(number))


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64()])
def test_a_camera_that_some_episodes_lack(videos, tmp_path, kind):
    """Bug prevented: missing numbers ended in a ValueError of the path's format."""
    folder = copy_of(videos, tmp_path)
    name = f"videos/{FRONT}/"
    columns = {
        name + "file_index": pa.array([None, 0, 0, 1, 1], kind),
        name + "from_timestamp": [None, 0.7, 1.9, 0, 0.9],
    }
    edit_episodes(folder, columns)
    episodes = LeRobotEpisodes.open_folder(folder)
    with pytest.raises(UserError, match=f"#0: has no video of {FRONT}; choose another camera"):
        episodes.open(0)
    for number in range(1, len(LENGTHS)):
        levels = shown(episodes.open(number).read(np.arange(2)))
        np.testing.assert_allclose(levels, [level(number, i) for i in range(2)], atol=CODEC_ERROR)
    assert len(LeRobotEpisodes.open_folder(folder, WRIST).open(0).read(np.arange(7))) == 7


def test_numbers_of_episodes_that_are_none_are_refused(images, tmp_path):
    """Bug prevented: lengths and file numbers out of range ended in a MemoryError or a ValueError."""
    for column, value in (("length", 0), ("length", None), ("data/file_index", -1), ("data/chunk_index", 2**40)):
        folder = copy_of(images, tmp_path / f"{column}{value}".replace("/", ""))
        edit_episodes(folder, {column: [value, 12, 5, 9, 6] if column == "length" else [value, 0, 1, 1, 1]})
        with pytest.raises(UserError, match="meta/episodes"):
            LeRobotEpisodes.open_folder(folder)
    folder = copy_of(images, tmp_path / "none")
    edit_episodes(folder, {"data/file_index": [None, 0, 1, 1, 1]})
    with pytest.raises(UserError, match="#0: meta/episodes names no data file for it"):
        LeRobotEpisodes.open_folder(folder).open(0)


@pytest.mark.parametrize("shape", [[3], [3, 1], [1, 3]])
def test_actions_of_several_axes_are_flattened(images, tmp_path, shape):
    """Bug prevented: optional features of other shapes refused the whole data set."""
    folder = copy_of(images, tmp_path)
    edit_info(folder, lambda info: info["features"]["action"].update(shape=shape))
    edit_info(folder, lambda info: info["features"]["next.reward"].update(shape=[]))
    episode = LeRobotEpisodes.open_folder(folder).open(3)
    np.testing.assert_array_equal(episode.actions(np.arange(9)), actions(3))
    np.testing.assert_array_equal(episode.rewards(np.arange(9)), rewards(3))


@pytest.mark.parametrize("nested", [False, True])
def test_lists_of_uneven_length_are_refused(images, tmp_path, nested):
    """Bug prevented: a row without an action beside one with two moved the actions between them to other frames."""
    folder = copy_of(images, tmp_path)
    for path in folder.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        rows = table.column("action").to_pylist()
        rows[1], rows[2] = [], rows[1] + rows[2]
        column = pa.array([[row] for row in rows] if nested else rows)
        pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", column), path)
    with pytest.raises(UserError, match=r"column 'action' holds \d+ values .*, unevenly many in each; expected 3"):
        LeRobotEpisodes.open_folder(folder).open(0).actions(np.arange(3))


def test_rewards_of_several_numbers_are_none(images, tmp_path):
    """Bug prevented: the first number of several was taken for the reward."""
    folder = copy_of(images, tmp_path)
    edit_info(folder, lambda info: info["features"]["next.reward"].update(shape=[2]))
    episode = LeRobotEpisodes.open_folder(folder).open(0)
    assert not episode.has_rewards
    assert episode.rewards(np.arange(2)) is None


def test_any_feature_can_be_the_action(images):
    """Bug prevented: actions under another name than "action" were dropped in silence."""
    episode = LeRobotEpisodes.open_folder(images, action_key="observation.state").open(0)
    assert episode.action_dim == 2
    np.testing.assert_array_equal(episode.actions(np.array([3])), [[3, -3]])
    with pytest.raises(
        UserError, match=r"no action: no feature 'actions' of numbers; those .* action \(3\), observation"
    ):
        LeRobotEpisodes.open_folder(images, action_key="actions")


BOMB = "data/{chunk_index:999999999d}.parquet"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": "fast"}, "fps is 'fast'; expected frames per second"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": True}, "fps is True"),
        ({"features": []}, r"features is \[\]; expected an object"),
        ({"features": {"action": 3}}, "feature 'action' is 3; expected a dtype and a shape"),
        ({"features": {"action": {"dtype": "float32", "shape": [-1]}}}, "expected a dtype and a shape"),
        ({"features": {"action": {"dtype": "float32", "shape": [1] * 9}}}, "expected a dtype and a shape"),
        ({"data_path": BOMB}, "data_path is .data/{chunk_.*parquet.; expected a path below"),
        ({"data_path": "{chunk_index.__class__}"}, "data_path is"),
        ({"data_path": "{chunk_index!r:>9}"}, "data_path is"),
        ({"data_path": "data/{other}.parquet"}, "data_path is"),
        ({"data_path": "../{chunk_index}.parquet"}, "data_path is"),
        ({"data_path": "/etc/{chunk_index}"}, "data_path is"),
        ({"data_path": None}, "data_path is None"),
        ({"codebase_version": 3}, "codebase_version is 3; expected v3.0"),
    ],
)
def test_metadata_is_checked(images, tmp_path, changes, message):
    """Bug prevented: foreign JSON ended in tracebacks, and a template took 2.9 GB."""
    folder = copy_of(images, tmp_path)
    edit_info(folder, lambda info: info.update(changes))
    with pytest.raises(UserError, match=message):
        LeRobotEpisodes.open_folder(folder)


def test_templates_of_paths(images, tmp_path):
    folder = copy_of(images, tmp_path)
    template = "x/{chunk_index}/{video_key}/{file_index:05d}-{chunk_index:03d}.mp4"
    edit_info(folder, lambda info: info.update(video_path=template))
    path = LeRobotInfo.load(folder).file("video_path", 2, 31, video_key="a.b")
    assert path == f"{folder}/x/2/a.b/00031-002.mp4"
    with pytest.raises(UserError, match="video_path is"):
        LeRobotInfo.load(folder).file("video_path", 2, 31, video_key="../..")


def test_stored_pictures_of_another_size_are_not_decoded(images, tmp_path):
    """Bug prevented: a small picture may unpack to gigabytes."""
    folder = copy_of(images, tmp_path)
    edit_info(folder, lambda info: info["features"][FRONT].update(shape=[HEIGHT, WIDTH + 1, 3]))
    with pytest.raises(UserError, match=r"have size \(32, 48\), but meta/info.json says \(32, 49\)"):
        LeRobotEpisodes.open_folder(folder).open(0).read(np.arange(1))


def test_files_that_claim_too_many_rows_are_refused(images, monkeypatch):
    monkeypatch.setattr(parquet_files, "_MOST_ROWS", 10)
    parquet_files._open.cache_clear()
    with pytest.raises(UserError, match="it claims 19 rows"):
        LeRobotEpisodes.open_folder(images).open(0)


def test_a_video_that_cannot_be_decoded_reaches_training_as_one_error(videos, tmp_path):
    """Bug prevented: an error raised in a data worker is buried in its traceback."""
    folder = copy_of(videos, tmp_path)
    for path in (folder / f"videos/{FRONT}").rglob("*.mp4"):
        content = bytearray(path.read_bytes())
        start = content.index(b"mdat") + 4
        content[start : start + len(content) // 3] = bytes(len(content) // 3)
        path.write_bytes(content)
    source = Source(
        dataset_info("so100"), LeRobotEpisodes.open_folder(folder), SegmentSpec(length=4).strategy(1), Preprocess(8)
    )
    clips = ClipDataset(DataConfig(segment=SegmentSpec(length=4)), PickInOrder([source]), seed=0)
    error = clips.__getitems__([0, 1])
    assert isinstance(error, UserError)
    assert f"{folder}/videos/{FRONT}/chunk-000/file-000.mp4" in str(error)
