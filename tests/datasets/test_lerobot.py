"""Both ways between npz episodes and LeRobot folders; the folders that are read are partly not of our own writing."""

import json
import os
import shutil

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.convert import lerobot_writer
from ivideogpt.data.formats.lerobot import LeRobotEpisodes
from ivideogpt.errors import UserError
from ivideogpt.flags import parse
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
from tests.data.formats.lerobot_v2_folder import SIZES, write_v2_folder
from tests.data.synthetic import write_episode
from tests.datasets.conversions import make_newer
from tests.datasets.scripts import command, load_script

to_npz = load_script("lerobot_to_npz")
to_lerobot = load_script("npz_to_lerobot")

CODEC_ERROR = 4  # grey levels
FPS = 5
LENGTH = {"push/a": 9, "push/b": 4, "lift/c": 6, "lift/d": 7, "lift/e": 5}
SIZE = (32, 48)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A LeRobot folder written without our writer."""
    return write_folder(tmp_path_factory.mktemp("recorded") / "pusht")


def picture(name, frame, camera=0):
    return 20 + 40 * list(LENGTH).index(name) + 3 * frame - 7 * camera


def frames(name, camera=0):
    levels = np.array([picture(name, i, camera) for i in range(LENGTH[name])], np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (len(levels), *SIZE, 3)).copy()


def write_npz(root, name, **arrays):
    """Two cameras, actions one short, rewards and whether the task is done."""
    rng = np.random.default_rng(list(LENGTH).index(name))
    count = LENGTH[name]
    content = dict(
        image=frames(name),
        wrist=frames(name, 1),
        action=rng.normal(size=(count - 1, 3)).astype(np.float32),
        reward=rng.normal(size=count).astype(np.float32),
        success=np.arange(count) >= count - 2,
    )
    return write_episode(root / f"{name}.npz", count, **(content | arrays))


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    root = tmp_path_factory.mktemp("episodes") / "npz"
    for name in LENGTH:
        write_npz(root, name)
    return root


def convert_to_lerobot(source, output, *flags):
    argv = ["--input_path", str(source), "--output_path", str(output), "--fps", str(FPS), "--num_workers", "1", *flags]
    return to_lerobot.run(parse(to_lerobot.ToLeRobotArgs, argv))


def convert_to_npz(source, output, *flags):
    argv = ["--input_path", str(source), "--output_path", str(output), "--num_workers", "1", *flags]
    return to_npz.run(parse(to_npz.LeRobotArgs, argv))


@pytest.fixture(scope="module")
def written(episodes, tmp_path_factory):
    """Files so small that each kind is begun anew several times."""
    folder = tmp_path_factory.mktemp("written") / "robot"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lerobot_writer, "VIDEO_FILE_BYTES", 3000)
        patch.setattr(lerobot_writer, "DATA_FILE_BYTES", 1500)
        assert convert_to_lerobot(episodes, folder).written == len(LENGTH)
    return folder


def test_to_npz_by_the_command_and_into_batches(recorded, tmp_path):
    """From a LeRobot folder to batches, in two processes from any directory."""
    done = command(tmp_path, "lerobot_to_npz", "--input_path", recorded, "--output_path", "out", "--num_workers", 2)
    assert done.returncode == 0, done.stderr
    assert "5 episodes written" in done.stdout
    assert "5/5" in done.stderr  # the progress bar
    config = DataConfig(
        str(tmp_path / "out"), "folder:pusht", SegmentSpec(length=4), image_size=16, load_action=True, load_reward=True
    )
    batch = next(iter(build_loader(config))).to("cpu")
    frame, number = batch.actions[..., 0], batch.actions[..., 1]
    torch.testing.assert_close(batch.rewards, 100 * number + frame)
    torch.testing.assert_close(batch.frames.mean(dim=(2, 3, 4)) * 255, 20 + 40 * number + 3 * frame, atol=2, rtol=0)


def test_the_pace_of_a_listed_name_is_said(recorded, tmp_path, monkeypatch, capsys):
    argv = ["lerobot_to_npz", "--input_path", recorded, "--output_path", tmp_path, "--num_workers", 1]
    monkeypatch.setattr("sys.argv", [*map(str, argv), "--dataset_name", "toto"])
    to_npz.main()
    assert "a data set called toto training takes one frame in 10" in capsys.readouterr().out.splitlines()[-1]


def test_cameras_series_and_resuming(recorded, tmp_path):
    assert (
        convert_to_npz(recorded, tmp_path, "--camera", WRIST, "--all_cameras", "--max_num_episodes", "2").written == 2
    )
    summary = convert_to_npz(recorded, tmp_path, "--camera", WRIST, "--all_cameras")
    assert (summary.written, summary.existing) == (3, 2)
    for number, length in enumerate(LENGTHS):
        with np.load(tmp_path / "pusht" / f"episode_{number:06d}.npz", allow_pickle=False) as episode:
            assert set(episode.files) == {"image", "front", "action", "reward", "state", "language_instruction"}
            for name, camera in (("image", WRIST), ("front", FRONT)):
                assert episode[name].shape == (length, HEIGHT, WIDTH, 3)
                wanted = [level(number, i, camera) for i in range(length)]
                np.testing.assert_allclose(episode[name].mean(axis=(1, 2, 3)), wanted, atol=1.5)
            np.testing.assert_array_equal(episode["action"], actions(number))
            np.testing.assert_array_equal(episode["reward"], rewards(number))
            assert episode["language_instruction"].tolist() == ["push the block"] * length
    with pytest.raises(UserError, match=r"cameras\.image was"):
        convert_to_npz(recorded, tmp_path)


@pytest.mark.parametrize(
    ("flags", "changed", "again"),
    [
        ((), "data/chunk-000/file-001.parquet", [2, 3, 4]),
        ((), f"videos/{FRONT}/chunk-000/file-000.mp4", [0, 1, 2]),
        ((), f"videos/{WRIST}/chunk-000/file-000.mp4", []),
        (("--all_cameras",), f"videos/{WRIST}/chunk-000/file-001.mp4", [3, 4]),
        ((), "meta/info.json", []),
    ],
)
def test_episodes_of_changed_files_are_converted_again(recorded, tmp_path, flags, changed, again):
    """Training went on with actions and frames that had been corrected in the recording."""
    folder = shutil.copytree(recorded, tmp_path / "so100")
    convert_to_npz(folder, tmp_path, "--dataset_name", "robot", *flags)
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "robot").glob("*.npz")}
    make_newer(folder / changed)
    summary = convert_to_npz(folder, tmp_path, "--dataset_name", "robot", *flags)
    assert (summary.written, summary.outdated, summary.existing) == (len(again), len(again), len(LENGTHS) - len(again))
    newer = [int(file.stem[-6:]) for file, before in made.items() if file.stat().st_mtime_ns > before]
    assert sorted(newer) == again


def test_version_2_in_part(tmp_path, capsys):
    """Bug prevented: frames of one camera beside those of another episode, as cameras lack different episodes."""
    folder = write_v2_folder(tmp_path / "so100")
    next(folder.rglob(f"{FRONT}/episode_000000.mp4")).unlink()
    next(folder.rglob(f"{WRIST}/episode_000003.mp4")).unlink()
    summary = convert_to_npz(folder, tmp_path, "--dataset_name", "robot", "--all_cameras")
    assert (summary.written, [skip.source for skip in summary.skipped]) == (3, [f"{folder}#3"])
    assert f"its files of {WRIST} are not there" in summary.skipped[0].reason
    assert "language_instruction from task_index" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "robot").glob("*.npz")) == [
        f"episode_00000{number}.npz" for number in (1, 2, 4)
    ]
    with np.load(tmp_path / "robot" / "episode_000004.npz", allow_pickle=False) as episode:
        for name, camera in (("image", FRONT), ("wrist", WRIST)):
            assert episode[name].shape == (LENGTHS[4], *SIZES[camera], 3)
            wanted = [level(4, i, camera) for i in range(LENGTHS[4])]
            np.testing.assert_allclose(episode[name].mean(axis=(1, 2, 3)), wanted, atol=1.5)
        np.testing.assert_array_equal(episode["action"], actions(4))
        assert set(episode["language_instruction"]) == {"push the block"}


def test_the_action_is_the_feature_that_is_named(recorded, tmp_path, capsys):
    """Bug prevented: actions under another name were dropped in silence."""
    convert_to_npz(recorded, tmp_path, "--action_key", "observation.state", "--max_num_episodes", "1")
    said = capsys.readouterr().out
    assert "arrays: image from observation.images.front, action from observation.state, reward from next.reward" in said
    assert "left out: action, next.done\n" in said
    assert "no action" not in said
    with np.load(tmp_path / "pusht" / "episode_000000.npz") as episode:
        np.testing.assert_array_equal(episode["action"][3], [3, -3])
    with pytest.raises(UserError, match=r"action_key was observation\.state, is None"):
        convert_to_npz(recorded, tmp_path)
    with pytest.raises(
        UserError, match=r"no action: no feature 'actions' of numbers; those of numbers are action \(3\)"
    ):
        convert_to_npz(recorded, tmp_path / "other", "--action_key", "actions")


def test_a_folder_without_actions_says_so_and_other_shapes_are_kept(tmp_path, capsys):
    """Bug prevented: action-free episodes without a word; a state of two axes refused every episode."""
    folder = write_folder(tmp_path / "robot", "image")
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["actions"] = info["features"].pop("action")
    info["features"]["observation.state"]["shape"] = [2, 1]
    path.write_text(json.dumps(info))
    assert convert_to_npz(folder, tmp_path).written == len(LENGTHS)
    said = capsys.readouterr().out
    assert "no action: no feature 'action' of numbers" in said
    assert "actions (3)" in said
    assert "take one of them with --action_key" in said
    with np.load(tmp_path / "robot" / "episode_000001.npz") as episode:
        assert set(episode.files) == {"image", "reward", "state", "language_instruction"}
        np.testing.assert_array_equal(episode["state"][4], [4, -4])


def test_resizing(recorded, tmp_path):
    convert_to_npz(recorded, tmp_path, "--resize", "16", "--square_crop", "--max_num_episodes", "1")
    with np.load(tmp_path / "pusht" / "episode_000000.npz") as episode:
        assert (episode["image"].shape, episode["image"].dtype) == ((LENGTHS[0], 16, 16, 3), np.uint8)


def test_the_round_trip(written, episodes, tmp_path):
    """Actions and rewards come back exactly, frames within what the codec loses, each beside the right others."""
    convert_to_npz(written, tmp_path, "--camera", "observation.images.image", "--all_cameras")
    for number, name in enumerate(sorted(LENGTH)):
        with (
            np.load(tmp_path / "robot" / f"episode_{number:06d}.npz") as after,
            np.load(episodes / f"{name}.npz") as before,
        ):
            assert set(after.files) == {"image", "wrist", "action", "reward", "success", "language_instruction"}
            np.testing.assert_array_equal(after["action"][:-1], before["action"])
            assert not after["action"][-1].any()
            np.testing.assert_array_equal(after["reward"], before["reward"])
            np.testing.assert_array_equal(after["success"], before["success"])
            assert set(after["language_instruction"]) == {name.partition("/")[0]}
            for camera in ("image", "wrist"):
                np.testing.assert_allclose(after[camera].astype(int), before[camera].astype(int), atol=CODEC_ERROR)


def test_what_is_written_is_the_format(written, episodes):
    """Read table by table, without our reader: what LeRobot looks up must be where it looks."""
    info = json.loads((written / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"]) == ("v3.0", FPS, len(LENGTH))
    assert info["total_frames"] == sum(LENGTH.values())
    assert info["features"]["action"] == {"dtype": "float32", "shape": [3], "names": None}
    assert info["features"]["next.success"]["dtype"] == "bool"
    camera = info["features"]["observation.images.wrist"]
    assert (camera["dtype"], camera["shape"]) == ("video", [*SIZE, 3])
    assert (camera["info"]["video.codec"], camera["info"]["video.pix_fmt"]) == ("h264", "yuv420p")

    tasks = pq.read_table(written / "meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1], "task": ["lift", "push"]}
    assert tasks.schema.pandas_metadata["index_columns"] == ["task"]

    meta = pq.read_table(written / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert len({row["data/file_index"] for row in meta}) > 1
    assert len({row["videos/observation.images.image/file_index"] for row in meta}) > 1
    start = 0
    for number, (row, name) in enumerate(zip(meta, sorted(LENGTH), strict=True)):
        count = LENGTH[name]
        assert (row["length"], row["dataset_from_index"], row["dataset_to_index"]) == (count, start, start + count)
        assert row["tasks"] == [name.split("/")[0]]
        path = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        rows = [line for line in pq.read_table(written / path).to_pylist() if line["episode_index"] == number]
        assert [line["frame_index"] for line in rows] == list(range(count))
        assert [line["index"] for line in rows] == list(range(start, start + count))
        assert {line["task_index"] for line in rows} == {["lift", "push"].index(name.split("/")[0])}
        np.testing.assert_allclose([line["timestamp"] for line in rows], np.arange(count) / FPS)
        with np.load(episodes / f"{name}.npz") as episode:
            np.testing.assert_array_equal([line["action"] for line in rows[:-1]], episode["action"])
            assert [line["next.success"] for line in rows] == episode["success"].tolist()
        start += count


def test_statistics(written, episodes):
    """Policies are normalised with them; LeRobot keeps those of pictures as (3, 1, 1) in [0, 1]."""
    stats = json.loads((written / "meta/stats.json").read_text())
    assert stats.keys() == json.loads((written / "meta/info.json").read_text())["features"].keys()
    every = [dict(np.load(episodes / f"{name}.npz")) for name in sorted(LENGTH)]
    action = np.concatenate([np.pad(episode["action"], [(0, 1), (0, 0)]) for episode in every])
    image = np.concatenate([episode["image"] for episode in every]) / 255
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(stats["action"][name], getattr(action, name)(axis=0), rtol=1e-5)
        pixels = np.array(stats["observation.images.image"][name])
        assert pixels.shape == (3, 1, 1)
        np.testing.assert_allclose(pixels[:, 0, 0], getattr(image, name)(axis=(0, 1, 2)), rtol=1e-5)
    assert stats["action"]["count"] == stats["observation.images.image"]["count"] == [len(action)]
    assert stats["timestamp"]["max"] == pytest.approx([8 / FPS])


def test_both_readers_agree_on_every_video_frame(written):
    """The frame at from_timestamp + i / fps of the named file is frame i, by PyAV alone."""
    info = json.loads((written / "meta/info.json").read_text())
    key = "observation.images.image"
    for row, name in zip(
        pq.read_table(written / "meta/episodes/chunk-000/file-000.parquet").to_pylist(), sorted(LENGTH), strict=True
    ):
        path = info["video_path"].format(
            video_key=key, chunk_index=row[f"videos/{key}/chunk_index"], file_index=row[f"videos/{key}/file_index"]
        )
        with av.open(str(written / path)) as container:
            shown = {round(frame.time * FPS): frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
            assert all(abs(frame * FPS - round(frame * FPS)) < 1e-6 for frame in shown)
        first = round(row[f"videos/{key}/from_timestamp"] * FPS)
        for i in range(LENGTH[name]):
            np.testing.assert_allclose(shown[first + i].astype(int), picture(name, i), atol=CODEC_ERROR)


def test_the_written_folder_trains_without_conversion(written, trains):
    """What ``--dataset_path lerobot:<folder>`` does."""
    config = DataConfig(f"lerobot:{written}", segment=SegmentSpec(length=4), image_size=16, load_action=True)
    batch = next(iter(build_loader(config))).to("cpu")
    assert batch.frames.shape[1:] == (4, 3, 16, 16)
    assert batch.actions.shape[1:] == (4, 3)
    trains(action_dim=3, dataset_path=f"lerobot:{written}")


def test_many_files_go_into_several_folders(episodes, tmp_path, monkeypatch):
    """Large datasets only: numbers of files that run on beyond a folder's limit are not found again."""
    limits = {"FILES_PER_CHUNK": 2, "EPISODES_PER_FILE": 2, "EPISODES_AT_ONCE": 1}
    for name, number in (limits | {"VIDEO_FILE_BYTES": 0, "DATA_FILE_BYTES": 0}).items():
        monkeypatch.setattr(lerobot_writer, name, number)
    convert_to_lerobot(episodes, tmp_path / "out")
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    places = ("chunk-000/file-000", "chunk-000/file-001", "chunk-001/file-000", "chunk-001/file-001")
    assert {f"data/{place}.parquet" for place in (*places, "chunk-002/file-000")} <= files
    assert {f"videos/observation.images.wrist/{place}.mp4" for place in places} <= files
    assert {f"meta/episodes/{place}.parquet" for place in places[:3]} <= files
    read = LeRobotEpisodes.open_folder(tmp_path / "out")
    for number, name in enumerate(sorted(LENGTH)):
        episode = read.open(number)
        assert episode.num_frames == LENGTH[name]
        np.testing.assert_allclose(episode.read(np.array([2])).mean(), picture(name, 2), atol=CODEC_ERROR)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux's")
def test_encoding_takes_no_real_time_priority():
    """SVT-AV1 gives it to whoever calls it as root, for good: a conversion in a container stopped the whole machine."""
    before = os.sched_getscheduler(0)
    to_lerobot.encode(np.zeros((3, 64, 64, 3), np.uint8), "av1", crf=30, fps=10)
    assert {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")} == {before}


def test_to_lerobot_by_the_command_after_an_interruption(episodes, tmp_path, monkeypatch):
    """The folder appears when it is complete, from parts made before and after."""
    flags = ["--input_path", episodes, "--output_path", "robot", "--fps", FPS, "--task", "do it", "--codec", "av1"]
    monkeypatch.setattr(to_lerobot, "assemble", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_to_lerobot(episodes, tmp_path / "robot", *map(str, flags[6:]), "--max_num_episodes", "2")
    assert not (tmp_path / "robot").exists()
    done = command(tmp_path, "npz_to_lerobot", *flags, "--num_workers", 2)
    assert done.returncode == 0, done.stderr
    assert "1 episodes written, 4 were there before" in done.stdout
    assert "train with --dataset_path lerobot:robot" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["robot"]
    assert "Svt" not in done.stderr
    read = LeRobotEpisodes.open_folder(tmp_path / "robot")
    assert read.info.features[read.camera.key]["info"]["video.codec"] == "av1"
    for number, name in enumerate(sorted(LENGTH)):
        shown = read.open(number).read(np.arange(LENGTH[name]))
        np.testing.assert_allclose(shown.mean(axis=(1, 2, 3)), frames(name).mean(axis=(1, 2, 3)), atol=CODEC_ERROR)
    again = command(tmp_path, "npz_to_lerobot", *flags)
    assert again.returncode == 2
    assert again.stderr == "error: --output_path robot exists already; delete it, or choose another\n"


def test_to_lerobot_in_shards(episodes, written, tmp_path):
    """Bug prevented: a folder of the first shard's episodes, which looks whole."""
    for shard in ("1/2", "0/2"):
        convert_to_lerobot(episodes, tmp_path / "robot", "--shard", shard)
        assert not (tmp_path / "robot").exists()
    summary = convert_to_lerobot(episodes, tmp_path / "robot")
    assert (summary.written, summary.existing) == (0, len(LENGTH))
    one, other = (LeRobotEpisodes.open_folder(folder) for folder in (written, tmp_path / "robot"))
    for number in range(len(LENGTH)):
        np.testing.assert_array_equal(one.open(number).series("action"), other.open(number).series("action"))


def test_to_lerobot_the_first_episodes_of_every_folder(episodes, tmp_path):
    """Bug prevented: --max_num_episodes took the first folder's alone, against its help."""
    assert convert_to_lerobot(episodes, tmp_path / "robot", "--max_num_episodes", "1").written == 2
    read = LeRobotEpisodes.open_folder(tmp_path / "robot")
    assert [read.open(number).num_frames for number in range(len(read))] == [LENGTH["lift/c"], LENGTH["push/a"]]


def interrupted(*_):
    raise KeyboardInterrupt


def test_bad_episodes_are_skipped_and_the_others_numbered_on(tmp_path):
    """Bug prevented: holes in the numbers, or an episode of another size or dimension in the middle of a video."""
    for name, arrays in {
        "push/a": {},
        "push/b": {"image": np.zeros((4, 16, 16, 3), np.uint8), "wrist": np.zeros((4, 16, 16, 3), np.uint8)},
        "lift/c": {"action": np.zeros((6, 2), np.float32)},
        "lift/d": {"action": np.full((7, 3), np.nan, np.float32)},
        "lift/e": {},
    }.items():
        write_npz(tmp_path / "in", name, **arrays)
    with pytest.raises(UserError, match=r"expected image 32x48, wrist 32x48, action of 2"):
        convert_to_lerobot(tmp_path / "in", tmp_path / "none", "--on_bad_episode", "error")
    write_npz(tmp_path / "in", "lift/c", reward=np.zeros(3))
    summary = convert_to_lerobot(tmp_path / "in", tmp_path / "out")
    assert (summary.written, len(summary.skipped)) == (2, 3)
    assert "b.npz: holds image 16x16, wrist 16x16" in str(summary)
    assert "c.npz: array 'reward' has 3 rows for 6 frames" in str(summary)
    assert "d.npz: array 'action' holds NaN" in str(summary)
    read = LeRobotEpisodes.open_folder(tmp_path / "out")
    assert read.table.number.tolist() == [0, 1]
    np.testing.assert_allclose(read.open(1).read(np.array([3])).mean(), picture("push/a", 3), atol=CODEC_ERROR)


@pytest.mark.parametrize(
    "state", [np.zeros((9, 2, 3)), np.array([{"x": 1}] * 9, object), np.zeros((4, 2)), np.array(["up"] * 9)]
)
def test_arrays_that_training_never_reads_may_be_of_any_kind(tmp_path, capsys, state):
    """Bug prevented: a state of other axes, or an array of motion in pixels, made every episode a bad one."""
    flow = np.full((9, *SIZE, 3), -3, np.int16)
    write_npz(tmp_path / "in", "push/a", state=state, flow=flow, lang=np.array([{}], object))
    assert convert_to_lerobot(tmp_path / "in", tmp_path / "out").written == 1
    assert capsys.readouterr().err.count("left out, as they are not a row of numbers a frame: state\n") == 1
    read = LeRobotEpisodes.open_folder(tmp_path / "out")
    assert read.info.cameras == ["observation.images.image", "observation.images.wrist"]
    assert "observation.state" not in read.info.features


def test_what_an_encoder_refuses_is_an_episode_left_out(tmp_path, monkeypatch):
    """Bug prevented: one episode of which no video can be made ended the conversion with a traceback."""
    for name in ("lift/c", "push/b"):
        write_npz(tmp_path / "in", name)
    write_npz(tmp_path / "in", "push/a", reward=np.float32(3))
    encode = to_lerobot.encode
    monkeypatch.setattr(
        to_lerobot, "encode", lambda frames, *rest: encode(frames[:, :31] if len(frames) == 4 else frames, *rest)
    )
    summary = convert_to_lerobot(tmp_path / "in", tmp_path / "out")
    assert (summary.written, len(summary.skipped)) == (1, 2)
    assert "b.npz: frames 31x48 cannot be encoded as h264" in str(summary)
    assert "a.npz: array 'reward' is float32 of shape (); expected numbers of shape (N,)" in str(summary)


def test_one_frame_and_no_action(tmp_path):
    """Bug prevented: N - 1 actions of a single frame are none, which numpy could not reshape."""
    frame = np.full((1, *SIZE, 3), 90, np.uint8)
    write_episode(tmp_path / "in" / "a.npz", 1, image=frame, action=np.zeros((0, 3), np.float32), reward=np.zeros(1))
    convert_to_lerobot(tmp_path / "in", tmp_path / "out")
    episode = LeRobotEpisodes.open_folder(tmp_path / "out").open(0)
    np.testing.assert_array_equal(episode.actions(np.array([0])), [[0, 0, 0]])


def test_frames_alone(tmp_path):
    write_episode(tmp_path / "in" / "a.npz", 6, size=(15, 15), action=None, reward=None)
    with pytest.raises(UserError, match="frames 'image' are 15x15; videos need even sizes: use --resize"):
        convert_to_lerobot(tmp_path / "in", tmp_path / "out")
    convert_to_lerobot(tmp_path / "in", tmp_path / "out", "--resize", "16")
    episode = LeRobotEpisodes.open_folder(tmp_path / "out").open(0)
    assert (episode.num_frames, episode.frame_size, episode.action_dim) == (6, (16, 16), None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--compress"], "--compress is for npz files"),
        (["--max_num_episodes", "0"], "--max_num_episodes is 0"),
    ],
)
def test_flags_that_do_not_fit(episodes, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        convert_to_lerobot(episodes, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_not_of_this_format_are_one_line(tmp_path):
    done = command(tmp_path, "lerobot_to_npz", "--input_path", tmp_path, "--output_path", "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: no LeRobot folder")
    assert done.stderr.count("\n") == 1
