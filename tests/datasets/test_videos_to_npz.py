"""Real videos whose frame i has grey level 8 i, with tables whose row i says i."""

import os
from contextlib import nullcontext

import av
import numpy as np
import pytest
import torch

from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import central_square, resize
from ivideogpt.data.convert.action_files import is_log_name
from ivideogpt.errors import UserError
from ivideogpt.flags import parse
from tests.datasets.scripts import command, load_script

converter = load_script("videos_to_npz")

NUM_FRAMES = 12
SIZE = (24, 32)  # height, width


def pictures(num_frames=NUM_FRAMES, size=SIZE):
    return np.broadcast_to(8 * np.arange(num_frames, dtype=np.uint8)[:, None, None, None], (num_frames, *size, 3))


def write_video(path, frames=None, rate=10, turned=0):
    frames = pictures() if frames is None else frames
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        codec = "libvpx" if path.suffix == ".webm" else "libx264"
        stream = container.add_stream(codec, rate=rate, options={"crf": "4", "g": "5", "b": "1M"})
        stream.height, stream.width = frames.shape[1:3]
        if turned:
            stream.set_display_rotation(turned)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def table(num_rows=NUM_FRAMES):
    rows = np.arange(num_rows, dtype=np.float32)
    return np.stack([rows, 10 * rows], axis=1)


def write_csv(path, header="x,y", rows=None, delimiter=","):
    rows = table() if rows is None else rows
    lines = [delimiter.join(f"{value:g}" for value in row) for row in rows]
    path.write_text("\n".join([header, *lines] if header else lines) + "\n")
    return path


@pytest.fixture
def folder(tmp_path):
    """One video with a table."""
    write_video(tmp_path / "videos" / "one.mp4")
    write_csv(tmp_path / "videos" / "one.csv")
    return tmp_path / "videos"


def convert(folder, *flags):
    """The command in this process, into the folder's parent."""
    argv = ["--input_path", str(folder), "--output_path", str(folder.parent / "out"), "--num_workers", "1"]
    return converter.run(parse(converter.VideosArgs, [*argv, "--dataset_name", "robot", *flags]))


def episode(folder, name="one"):
    with np.load(folder.parent / "out" / "robot" / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def shown(frames):
    """The number of each frame."""
    numbers = frames.reshape(len(frames), -1).mean(axis=1) / 8
    np.testing.assert_allclose(numbers, np.round(numbers), atol=0.25)
    return np.round(numbers).astype(int).tolist()


def test_the_command_converts_and_its_output_is_read_and_trains(trains, tmp_path):
    """From videos and tables to training, by the documented command, from any directory and in two processes."""
    for i in range(3):
        write_video(tmp_path / "videos" / f"take{i}.mp4")
        write_csv(tmp_path / "videos" / f"take{i}.csv")
    flags = ["--input_path", "videos", "--output_path", "data", "--dataset_name", "my_robot"]
    done = command(tmp_path, "videos_to_npz", *flags, "--num_workers", 2)
    assert done.returncode == 0, done.stderr
    assert "3 episodes written" in done.stdout
    assert "--dataset_path data --oxe_data_mixes_type folder:my_robot" in done.stdout
    assert "3/3" in done.stderr  # the progress bar
    config = DataConfig(
        str(tmp_path / "data"), "folder:my_robot", SegmentSpec(length=4), image_size=16, batch_size=2, load_action=True
    )
    batch = next(iter(build_loader(config))).to("cpu")
    assert batch.frames.shape == (2, 4, 3, 16, 16)
    starts = batch.actions[:, :1, 0]
    np.testing.assert_array_equal(batch.actions[:, :, 0].numpy(), (starts + torch.arange(4)).numpy())
    levels = batch.frames.mean(dim=(2, 3, 4)) * 255 / 8
    np.testing.assert_allclose(levels.numpy(), batch.actions[:, :, 0].numpy(), atol=0.25)
    trains(oxe_data_mixes_type="folder:my_robot", action_dim=2, dataset_path=tmp_path / "data")


@pytest.mark.parametrize(("name", "said"), [("bridge", "bridge training takes one frame in 2, the"), ("own", None)])
def test_the_pace_of_a_listed_name_is_said(folder, tmp_path, name, said, monkeypatch, capsys):
    """Half of the frames, or nine tenths, are left out of what is called like a public data set."""
    argv = ["videos_to_npz", "--input_path", folder, "--output_path", tmp_path, "--num_workers", 1]
    monkeypatch.setattr("sys.argv", [*map(str, argv), "--dataset_name", name])
    converter.main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"folder:{name}") if said is None else said in last


@pytest.mark.parametrize("suffix", [".mov", ".webm", ".avi", ".MP4"])
def test_containers(tmp_path, suffix):
    write_video(tmp_path / "videos" / f"one{suffix}")
    np.save(tmp_path / "videos" / "one.npy", table())
    convert(tmp_path / "videos")
    arrays = episode(tmp_path / "videos")
    assert shown(arrays["image"]) == list(range(NUM_FRAMES))
    assert arrays["image"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["action"], table())
    assert arrays["action"].dtype == np.float32


def test_videos_of_phones_are_turned_upright(tmp_path):
    """A phone held upright stores its pictures lying and a note of how to turn them."""
    frames = np.zeros((2, *SIZE, 3), np.uint8)
    frames[:, :8] = 200  # a bright bar at the top
    write_video(tmp_path / "videos" / "one.mp4", frames, turned=-90)
    convert(tmp_path / "videos")
    with av.open(str(tmp_path / "videos" / "one.mp4")) as container:
        assert next(container.decode(video=0)).rotation == -90  # to be turned clockwise
    image = episode(tmp_path / "videos")["image"]
    assert image.shape == (2, SIZE[1], SIZE[0], 3)
    assert image[0, :, -4].min() > 150  # the bar is on the right
    assert image[0, :, 4].max() < 50


def test_resizing_is_the_trainings_own(tmp_path):
    """Frames resized otherwise would differ from those that a model sees when it is used."""
    rng = np.random.default_rng(0)
    frames = np.kron(rng.integers(0, 256, (2, 6, 8, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    write_video(tmp_path / "videos" / "one.mp4", frames)
    convert(tmp_path / "videos", "--dataset_name", "full")
    convert(tmp_path / "videos", "--resize", "16", "--square_crop")
    with np.load(tmp_path / "out" / "full" / "one.npz") as file:
        recorded = file["image"]
    wanted = resize(central_square(*SIZE)(recorded), 16).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(episode(tmp_path / "videos")["image"], wanted, atol=0.5001)


def test_every_so_many_frames(folder):
    convert(folder, "--step", "5")
    arrays = episode(folder)
    assert shown(arrays["image"]) == [0, 5, 10]
    assert arrays["action"][:, 0].tolist() == [0, 5, 10]


@pytest.mark.parametrize(("how", "wanted"), [("sum", [10, 35]), ("mean", [2, 7])])
def test_skipped_actions_may_be_combined(folder, how, wanted):
    """The last kept frame has no action then: how long it would have lasted is unknown."""
    convert(folder, "--step", "5", "--skipped_actions", how)
    assert episode(folder)["action"][:, 0].tolist() == wanted


@pytest.mark.parametrize(("fps", "wanted"), [("5", [0, 2, 4, 6, 8, 10]), ("4", [0, 2, 5, 7, 10]), ("10", range(12))])
def test_frames_per_second(folder, fps, wanted):
    convert(folder, "--fps", fps)
    arrays = episode(folder)
    assert shown(arrays["image"]) == list(wanted)
    assert arrays["action"][:, 0].tolist() == list(wanted)


@pytest.mark.parametrize(
    ("num_rows", "offset", "frames", "actions"),
    [
        (12, 0, range(12), range(12)),
        (11, 0, range(12), range(11)),  # the last frame needs none
        (12, 1, range(12), range(1, 12)),  # row i led to frame i
        (13, 1, range(12), range(1, 13)),
        (12, 2, range(11), range(2, 12)),
        (12, -1, range(1, 12), range(11)),
        (11, -1, range(1, 12), range(11)),
        (10, -1, range(1, 12), range(10)),
    ],
)
def test_tables_that_lead_or_lag(tmp_path, num_rows, offset, frames, actions):
    """Bug prevented: actions beside the wrong frames, or frames with invented actions."""
    write_video(tmp_path / "videos" / "one.mp4")
    np.save(tmp_path / "videos" / "one.npy", table(num_rows))
    convert(tmp_path / "videos", "--action_offset", str(offset))
    arrays = episode(tmp_path / "videos")
    assert shown(arrays["image"]) == list(frames)
    assert arrays["action"][:, 0].tolist() == list(actions)


@pytest.mark.parametrize("num_rows", [10, 13])
def test_tables_that_do_not_fit_the_video(tmp_path, num_rows):
    write_video(tmp_path / "videos" / "one.mp4")
    np.save(tmp_path / "videos" / "one.npy", table(num_rows))
    message = f"{num_rows} rows of actions for 12 frames; expected 12, or 11 without the last.*--action_offset"
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "videos", "--on_bad_episode", "error")


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("x,y\n1,2\n3,4\n", None),
        ("1,2\n3,4\n", None),
        ("\ufeffx;y\r\n1;2\r\n3;4\r\n\r\n \r\n", None),
        ("x\ty\tnote\n1\t2\t\n3\t4\t\n", "x,y"),
        ("x,y\r\r\n1,2\r\r\n3,4\r\r\n", None),
        ("# x y\n1 2\n3 4\n", None),
        ("time,x,y,note\n0.0,1,2,start\n0.1,3,4,end\n", "x,y"),
        ("time,x,y,note\n0.0,1,2,start\n0.1,3,4,end\n", "1, 2"),
        ("y,x\n2,1\n4,3\n", "x,y"),
        ('"x","y"\n"1","2"\n"3","4"\n', None),
    ],
)
def test_ways_to_write_a_table(tmp_path, text, columns):
    (tmp_path / "one.csv").write_text(text, encoding="utf-8")
    names = [name.strip() for name in columns.split(",")] if columns else []
    np.testing.assert_array_equal(converter.read_actions(tmp_path / "one.csv", names).actions, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("timestamp,x\n0,1\n", [], r"column 'timestamp' does not look like an action, .* out of timestamp,x"),
        ("x,y\n1,2\n", ["z"], "no column 'z'; it has 2 columns, called x, y, or numbers from 0 to 1"),
        ("1,2\n", ["2"], "no column '2'; it has 2 columns, called numbers from 0 to 1"),
        ("x,y\n1,left\n", [], "row 0 of column y is 'left', no number"),
        ("x,y\n1,2\n3\n", [], "row 1 has 1 cells, expected 2"),
        ("x,y\n1,nan\n", [], "NaN or infinite values .first in row 0"),
        ("grip\n1\n2\n\n4\n", [], r"one.csv: line 4 is empty, but rows come after it"),
        ("\n1\n2\n", [], "line 1 is empty"),
        ("x,y\n\n1,2\n3,4\n", [], "line 2 is empty"),
        ("x,y\n", [], "holds no rows"),
        ("", [], "is empty"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, columns, message):
    (tmp_path / "one.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        converter.read_actions(tmp_path / "one.csv", columns)


def test_numpy_tables_that_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.array([{"x": 1}], dtype=object))
    with pytest.raises(UserError, match="pickled Python objects"):
        converter.read_actions(tmp_path / "one.npy")
    np.save(tmp_path / "one.npy", np.zeros((2, 3, 4)))
    with pytest.raises(UserError, match=r"float64 of shape \(2, 3, 4\); expected numbers of shape \(N, D\)"):
        converter.read_actions(tmp_path / "one.npy")
    np.save(tmp_path / "one.npy", np.arange(3))
    assert converter.read_actions(tmp_path / "one.npy").actions.shape == (3, 1)


CURVED = [[0.11, 0.5, -0.25], [0.12, 0.75, 0.5], [0.2, 0.125, 0.25]]
CURVED_LINES = "0.11,0.5,-0.25\n0.12,0.75,0.5\n0.2,0.125,0.25\n"


def test_the_numeric_header_of_pandas_is_no_action(tmp_path):
    """Bug prevented: the line 0,1,2 became the first action, and all others belonged to the frame before theirs."""
    (tmp_path / "one.csv").write_text("0,1,2\n" + CURVED_LINES)
    read = converter.read_actions(tmp_path / "one.csv")
    np.testing.assert_array_equal(read.actions, np.float32(CURVED))
    assert converter.how_read(tmp_path / "one.csv", read) == (
        "one.csv: actions of 3 dimensions, first line read as names: 0,1,2"
    )
    chosen = converter.read_actions(tmp_path / "one.csv", ["2", "0"])
    np.testing.assert_array_equal(chosen.actions, np.float32(CURVED)[:, [2, 0]])
    assert chosen.left_out == ("1",)
    assert converter.how_read(tmp_path / "one.csv", chosen).endswith("first line read as names: 0,1,2; left out: 1")


@pytest.mark.parametrize(
    ("header", "text"), [("x,y", "0,1\n0.5,0.25\n"), ("x", "0\n0.5\n"), ("x,y,z", "0,1,2\n1,0,2\n")]
)
def test_a_first_line_that_may_be_either_is_refused(tmp_path, header, text):
    """A robot at rest begins with 0: neither dropping nor keeping that line may be a guess."""
    (tmp_path / "one.csv").write_text(text)
    with pytest.raises(UserError, match="may be a header or an action; write a header with names"):
        converter.read_actions(tmp_path / "one.csv")
    (tmp_path / "one.csv").write_text(f"{header}\n{text}")
    assert converter.read_actions(tmp_path / "one.csv").actions[0, 0] == 0


@pytest.mark.parametrize(
    "name",
    [
        *("timestamp", "Time", "%time", "rosbagTimestamp", "timestamp_ns", "Time (s)", "time_s", "t_sec", "t", "t_ms"),
        *("secs", "frame_id", "frame_number", "frameIdx", "episode_index", ".header.seq", "field.header.stamp"),
        *("wall_time", "datetime", "Unnamed: 0", "", "header.stamp.nsecs", "index", "Step", "seq"),
    ],
)
def test_time_and_counters_of_loggers_are_no_actions(tmp_path, name):
    """Bug prevented: an action of 1.7e18, which trains a model that nothing can steer."""
    (tmp_path / "one.csv").write_text(f"{name},x\n1,0.5\n2,0.25\n4,0.5\n")
    with pytest.raises(UserError, match=r"does not look like an action, it is named .*--action_columns"):
        converter.read_actions(tmp_path / "one.csv")
    assert converter.read_actions(tmp_path / "one.csv", ["x"]).actions.tolist() == [[0.5], [0.25], [0.5]]
    assert converter.read_actions(tmp_path / "one.csv", ["0"]).actions.tolist() == [[1], [2], [4]]


@pytest.mark.parametrize("name", ["x", "dx", "index_finger", "step_size", "joint_1", "id1", "grip", "s", "θ", "pos.x"])
def test_names_of_actions_are_no_logs(name):
    assert not is_log_name(name)


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (np.arange(8) * 0.1, "changes by 0.1 from every row to the next"),
        (np.arange(8)[::-1], "changes by -1 from"),
        (1732800000 + np.arange(8) ** 2, r"reaches 1.73e\+09"),
    ],
)
def test_columns_without_names_are_recognised_by_their_values(tmp_path, column, reason):
    values = np.stack([column, np.cos(np.arange(8))], axis=1)
    np.save(tmp_path / "one.npy", values)
    with pytest.raises(UserError, match=f"column '0' does not look like an action, it {reason}.*out of 0 to 1"):
        converter.read_actions(tmp_path / "one.npy")
    assert converter.read_actions(tmp_path / "one.npy", ["1"]).left_out == ("0",)
    for actions in (np.zeros((8, 2)), np.arange(16.0).reshape(8, 2)):  # at rest, and all columns alike: no counter
        np.save(tmp_path / "one.npy", actions)
        np.testing.assert_array_equal(converter.read_actions(tmp_path / "one.npy").actions, actions)


@pytest.mark.parametrize("name", ["x", "dy", "action_0", "joint1", "pos.z", "Gripper"])
def test_steady_columns_with_names_of_actions_are_actions(tmp_path, name):
    """Bug prevented: a table of x and y was refused where the arm had moved along a line."""
    for header, is_refused in ((f"{name},b", False), ("k,b", True), (f"{name}_time,b", True)):
        (tmp_path / "one.csv").write_text(f"{header}\n" + "".join(f"{i},0\n" for i in range(8)))
        with pytest.raises(UserError, match="look like an action") if is_refused else nullcontext():
            actions = converter.read_actions(tmp_path / "one.csv").actions
            assert actions.tolist() == [[i, 0] for i in range(8)]


def test_absurd_actions_are_named(tmp_path):
    np.save(tmp_path / "one.npy", np.array([[0.5], [3e38]]))
    with pytest.raises(UserError, match=r"holds 3e\+38 .row 1.; no action or reward is beyond 1e\+10"):
        converter.read_actions(tmp_path / "one.npy", ["0"])


def test_bad_episodes_are_skipped_and_named(folder):
    """One broken take must neither end a night's conversion nor go unnoticed."""
    write_video(folder / "no_table.mp4")
    write_video(folder / "wide.mp4")
    np.save(folder / "wide.npy", np.zeros((NUM_FRAMES, 3)))
    (folder / "torn.mp4").write_bytes((folder / "one.mp4").read_bytes()[:700])
    write_csv(folder / "torn.csv")
    (folder / "sub").mkdir()
    (folder / "sub" / "one.mp4").write_bytes((folder / "one.mp4").read_bytes())
    write_csv(folder / "sub" / "one.csv")
    summary = convert(folder)
    assert (summary.written, len(summary.skipped)) == (2, 3)
    reasons = str(summary)
    assert "no_table.mp4: no actions; expected no_table.csv or no_table.npy beside it" in reasons
    assert "wide.npy: its actions are 0,1,2; expected x,y in any order, as in the first table" in reasons
    assert "torn.mp4: missing, damaged or not a video" in reasons
    assert episode(folder, "sub_one")["image"].shape == (NUM_FRAMES, *SIZE, 3)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("x,y", table()),
        ("y,x", table()[:, ::-1]),  # by name, in the order of the first table
        ("x,z", "its actions are x,z; expected x,y in any order, as in the first table"),
        (None, "its actions are 0,1; expected x,y in any order"),
        ("X,Y", "its actions are X,Y; expected x,y"),
    ],
)
def test_columns_are_taken_by_name(folder, header, expected):
    """Bug prevented: tables with the same columns in another order were mixed, and nothing could steer the model."""
    write_video(folder / "two.mp4")
    write_csv(folder / "two.csv", header)
    summary = convert(folder)
    if isinstance(expected, str):
        assert summary.written == 1
        assert f"two.csv: {expected}" in str(summary)
    else:
        np.testing.assert_array_equal(episode(folder, "two")["action"], expected)


def test_chosen_columns_are_one_set_by_name_too(folder):
    """Bug prevented: --action_columns 0,1 took other columns in a table of another order."""
    rows = np.concatenate([table()[:, ::-1], 100 + table()[:, :1]], axis=1)
    for name in ("two", "three"):
        write_video(folder / f"{name}.mp4")
    write_csv(folder / "two.csv", "y,x,z", rows)
    write_csv(folder / "three.csv", "z,x,y", rows[:, [2, 1, 0]])
    summary = convert(folder, "--action_columns", "0,1")
    np.testing.assert_array_equal(episode(folder, "two")["action"], table())
    assert "three.csv: its actions are z,x; expected x,y" in str(summary)
    assert convert(folder, "--action_columns", "x,y", "--dataset_name", "by_name").written == 3


def test_an_episode_that_comes_later_does_not_change_the_order(folder):
    """Bug prevented: a new first table with columns in another order, whose order the following episodes had."""
    convert(folder)
    write_video(folder / "new.mp4")
    write_csv(folder / "new.csv", "y,x")
    with pytest.raises(UserError, match=r"action_names was \['x', 'y'\], is \['y', 'x'\]\): name another folder"):
        convert(folder)


def test_it_goes_on_after_an_interruption_and_keeps_to_its_settings(folder):
    write_video(folder / "two.mp4")
    write_csv(folder / "two.csv")
    assert convert(folder, "--max_num_episodes", "1").written == 1
    summary = convert(folder)
    assert (summary.written, summary.existing) == (1, 1)
    with pytest.raises(UserError, match="resize was None, is 16"):
        convert(folder, "--resize", "16")


def test_a_corrected_table_is_converted_again(folder):
    """Bug prevented: inspect finds late actions, the table is corrected, and the same command keeps the old episode."""
    convert(folder)
    made = (folder.parent / "out" / "robot" / "one.npz").stat().st_mtime
    write_csv(folder / "one.csv", rows=2 * table())
    os.utime(folder / "one.csv", (made + 1, made + 1))
    summary = convert(folder)
    assert (summary.written, summary.outdated) == (1, 1)
    np.testing.assert_array_equal(episode(folder)["action"], 2 * table())
    os.utime(folder / "one.csv", (made - 1, made - 1))
    os.utime(folder / "one.mp4", (made + 9, made + 9))
    assert convert(folder).outdated == 1


def test_misnamed_tables_are_an_error(tmp_path):
    """They would make a dataset without actions, which shows only when a model is trained on it."""
    write_video(tmp_path / "videos" / "one.mp4")
    write_csv(tmp_path / "videos" / "one_actions.csv")
    with pytest.raises(UserError, match=r"one_actions.csv: no table has the name of a video; expected one.csv"):
        convert(tmp_path / "videos")


def test_long_videos_end_in_advice_not_in_a_full_memory(folder, monkeypatch):
    monkeypatch.setattr(converter, "MAX_EPISODE_BYTES", 5 * SIZE[0] * SIZE[1] * 3)
    with pytest.raises(UserError, match="use --resize, --fps or --step"):
        convert(folder)
    convert(folder, "--step", "4", "--dataset_name", "robot2")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fps", "0"], "--fps 0.0: must be above 0"),
        (["--fps", "5", "--step", "2"], "both choose frames"),
        (["--skipped_actions", "sum"], "needs --fps or --step: no frame is left out"),
        (["--fps", "20"], "has 10 frames per second, --fps asks for 20"),
    ],
)
def test_flags_that_do_not_fit(folder, flags, message):
    with pytest.raises(UserError, match=message):
        convert(folder, *flags)


def test_user_errors_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    done = command(tmp_path, "videos_to_npz", "--input_path", "empty", "--output_path", "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --input_path empty: no videos there")
    assert done.stderr.count("\n") == 1


def test_trouble_with_one_episode_leaves_the_others(folder):
    """Bug prevented: a video of an unknown codec, and two tables for one video, ended the whole conversion."""
    for name in ("codec", "tables"):
        write_video(folder / f"{name}.mp4")
        write_csv(folder / f"{name}.csv")
    np.save(folder / "tables.npy", table())
    content = (folder / "codec.mp4").read_bytes()
    (folder / "codec.mp4").write_bytes(content.replace(b"avc1", b"none").replace(b"avcC", b"noneC"[:4]))
    summary = convert(folder)
    assert (summary.written, len(summary.skipped)) == (1, 2)
    assert "codec.mp4: its video is in a format that PyAV cannot decode; write it anew as H.264" in str(summary)
    assert "tables.csv and tables.npy: two files of actions for one video" in str(summary)
    with pytest.raises(UserError, match=r"codec\.mp4: its video is in a format .*; repair it, or leave such"):
        convert(folder, "--on_bad_episode", "error", "--dataset_name", "again")


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, 0.2, 0.1], "frame 2 is shown at 0.100 s, not after the one before, so --fps cannot choose"),
        ([0.0, None], "frame 1 is shown at no time, so --fps cannot choose; use --step instead"),
    ],
)
def test_frames_whose_times_do_not_rise_are_not_chosen_by_time(times, message):
    """Bug prevented: a frame without a time ended in a TypeError, one that runs back gave frames of other moments."""
    frames = [(i, seconds, "picture") for i, seconds in enumerate(times)]
    with pytest.raises(UserError, match=message):
        list(converter.frames_in_time(frames, 5))
