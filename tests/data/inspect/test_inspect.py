import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ivideogpt.data import __main__ as commands
from ivideogpt.data.formats.registry import find_episodes
from ivideogpt.data.inspect import command as inspect_episodes
from ivideogpt.data.inspect.validate import validate_dataset
from ivideogpt.errors import UserError
from tests.commands import run_python
from tests.data.formats.lerobot_folder import FRONT, LENGTHS, WRIST, write_folder
from tests.data.synthetic import square, write_episode, write_squares
from tests.real_data import real_data

ROOT = Path(__file__).parents[3]


@pytest.fixture
def inspect(capsys):
    """Runs the command and returns its text, or its JSON with ``--json``."""

    def run(*argv):
        inspect_episodes.main([str(word) for word in argv])
        text = capsys.readouterr().out
        return json.loads(text) if "--json" in argv else text

    return run


def test_what_is_said_of_a_good_dataset(inspect, tmp_path):
    write_squares(tmp_path / "squares")
    (report,) = inspect(tmp_path, "--json")
    assert (report["name"], report["num_episodes"], report["num_inspected"]) == ("squares", 8, 8)
    assert report["lengths"] == [40, 40, 40]
    assert report["frame_sizes"] == {"64x64": 8}
    assert report["arrays"][0] == {"name": "image", "row_shape": [64, 64, 3], "dtype": "uint8", "storage": "mapped"}
    rows = np.concatenate([np.load(tmp_path / "squares" / f"{i}.npz")["action"][:-1] for i in range(8)])
    for i, statistics in enumerate(report["actions"]):
        column = rows[:, i].astype(float)
        assert statistics == pytest.approx(
            dict(mean=column.mean(), std=column.std(), min=column.min(), max=column.max())
        )
    assert report["alignment"]["best_shift"] == 0
    assert report["suspicious"] == ["action dimensions that never change: 2 (always 0)"]
    assert report["unreadable"] == []


def test_actions_one_row_late_are_pointed_out(inspect, tmp_path):
    write_squares(tmp_path, late=1)
    assert "! action[i+1] goes with the motion" in inspect(tmp_path)


def test_faults_of_pictures(inspect, tmp_path):
    """Black, empty and repeated frames teach a model that nothing happens."""
    frames = square()["image"]
    black, flat, repeated, unscaled = (frames.copy() for _ in range(4))
    black[[3, 4]] = 5
    flat[7] = 128
    repeated[:] = repeated[np.arange(40) // 2]
    unscaled[:] = unscaled // 250
    for name, image in (("black", black), ("flat", flat), ("repeated", repeated), ("unscaled", unscaled)):
        write_episode(tmp_path / f"{name}.npz", 40, image=image)
    text = inspect(tmp_path, "--max_frames", "40")
    assert f"frames are of one colour in 1 episode: {tmp_path}/flat.npz (1 of 40: 7)" in text
    assert f"{tmp_path}/black.npz (2 of 40: 3, 4)" in text
    assert f"were colours in 0..1 stored as uint8? {tmp_path}/unscaled.npz" in text
    assert f"most in {tmp_path}/repeated.npz (20 of 40: 1, 3, 5, ...)" in text


def test_frames_are_numbered_alike_in_one_portion_or_many(tmp_path, monkeypatch, inspect):
    """Large frames are read in portions, and a repeated one may lie across their border."""
    frames = square()["image"]
    frames[10] = frames[9]
    frames[20] = 0
    write_episode(tmp_path / "a.npz", 40, image=frames)
    whole = inspect(tmp_path, "--json")
    monkeypatch.setattr("ivideogpt.data.formats.episodes._CHUNK_BYTES", 10 * 64 * 64 * 3)
    assert inspect(tmp_path, "--json") == whole


def test_faults_of_actions_and_of_sets(inspect, tmp_path):
    action = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    action[200, 1] = -900
    write_episode(tmp_path / "a.npz", 400, action=action)
    write_episode(tmp_path / "b.npz", 5, size=(8, 16), action=None)
    write_episode(tmp_path / "c.npz", 1)
    text = inspect(tmp_path)
    assert "action dimension 1 reaches -900, 20 standard deviations from its mean" in text
    assert "episodes differ in frame size: 8x8 in 2; 8x16 in 1" in text
    assert "episodes differ in action dimension: 2 in 2; none in 1" in text
    assert f"1 episode of a single frame: {tmp_path}/c.npz" in text


@pytest.mark.parametrize(("name", "shape"), [("action", (20, 2)), ("reward", 20), ("success", 20)])
def test_unreadable_episodes_are_listed_and_the_others_described(name, shape, inspect, tmp_path):
    """NaN among successes had passed, and ended train_robot.py after hours."""
    write_episode(tmp_path / "good.npz")
    values = np.zeros(shape, np.float32)
    values[4] = np.nan
    write_episode(tmp_path / "nan.npz", **{name: values})
    (tmp_path / "truncated.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:500])
    (report,) = inspect(tmp_path, "--json")
    assert report["lengths"] == [20, 20, 20]
    assert ["nan.npz" in cause or "truncated.npz" in cause for cause in report["unreadable"]] == [True, True]
    assert "first in row 4" in report["unreadable"][0]


def test_nothing_but_unreadable_episodes(inspect, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"nothing")
    assert "! unreadable" in inspect(tmp_path)


def test_a_sample_is_looked_at(inspect, tmp_path):
    write_squares(tmp_path)
    (report,) = inspect(tmp_path, "--json", "--max_episodes", "3")
    assert (report["num_episodes"], report["num_inspected"]) == (8, 3)


def test_what_a_path_can_be(inspect, tmp_path):
    file = write_episode(tmp_path / "sets" / "b" / "train" / "1.npz", save=np.savez_compressed)
    write_episode(tmp_path / "sets" / "a" / "1.npz")
    (tmp_path / "sets" / "a" / "again").symlink_to(tmp_path / "sets")
    names = [(found.name, len(found.episodes)) for found in find_episodes(str(tmp_path / "sets"))]
    assert names == [("a", 1), ("b/train", 1)]
    assert "uint8, compressed" in inspect(file)
    for path, message in (("nowhere", "no such file"), (tmp_path / "sets" / "b" / "train" / "none", "no such file")):
        with pytest.raises(UserError, match=message):
            find_episodes(str(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.npz files"):
        find_episodes(str(tmp_path / "empty"))


def test_the_datasets_image_key_is_known(inspect, tmp_path):
    """Converted open datasets keep their own name for the camera."""
    frames = square()["image"]
    write_episode(tmp_path / "language_table" / "1.npz", 40, image=None, rgb=frames)
    write_episode(tmp_path / "mine" / "1.npz", 40, image=None, wrist=frames)
    assert inspect(tmp_path / "language_table", "--json")[0]["frame_sizes"] == {"64x64": 1}
    assert inspect(tmp_path / "mine", "--json", "--image_key", "wrist")[0]["frame_sizes"] == {"64x64": 1}
    assert "no image array 'image'" in inspect(tmp_path / "mine")


def test_lerobot(inspect, tmp_path):
    folder = write_folder(tmp_path / "so100")
    for path in (f"lerobot:{folder}@{WRIST}", folder, f"lerobot:{folder}@{FRONT}"):
        (report,) = inspect(path, "--json")
        assert (report["name"], report["num_episodes"]) == ("so100", len(LENGTHS))
        assert report["lengths"] == [min(LENGTHS), sorted(LENGTHS)[2], max(LENGTHS)]
        assert len(report["actions"]) == 3
        assert report["unreadable"] == []


def test_lerobot_features_are_named(inspect, tmp_path):
    """Bug prevented: nothing said that a folder's actions have another name than the one that is read."""
    folder = write_folder(tmp_path / "me@lab, room" / "so 100", "image")
    path = folder / "meta/info.json"
    path.write_text(path.read_text().replace('"action"', '"actions"'))
    data = [(file, pq.read_table(file)) for file in (folder / "data").rglob("*.parquet")]
    for file, table in data:
        pq.write_table(table.rename_columns({"action": "actions"}), file)
    text = inspect(folder)
    assert "actions          (N, 3) float32, read as nothing" in text
    assert f"{FRONT} (N, 32, 48, 3) image, read as frames" in text
    assert (
        "! no action: no feature 'action' of numbers; those of numbers are actions (3), observation.state (2)" in text
    )
    (report,) = inspect(f"lerobot:{folder}@action=actions", "--json")
    assert len(report["actions"]) == 3
    assert not any("no action" in line for line in report["suspicious"])


def test_the_command(tmp_path):
    """Without torch, which takes seconds to load; errors in one line."""
    write_episode(tmp_path / "a.npz")
    code = (
        "import sys; from ivideogpt.data.inspect import command; command.main(sys.argv[1:]); "
        "print('torch' in sys.modules)"
    )
    quiet = dict(cwd=ROOT, capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], **quiet)
    assert done.stdout.endswith("False\n"), done.stderr
    assert "1 episodes, 1 looked at" in run_python("-m", "ivideogpt.data", "inspect", tmp_path).stdout
    done = run_python("-m", "ivideogpt.data", "inspect", "nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_demonstrations_are_inspected_as_episodes(inspect, tmp_path):
    """Row i of the replay format holds the action that led to frame i: shown as they are, actions would be a row late.

    Of each stack the newest frame counts.
    """
    episode = square()
    frames = episode["image"].transpose(0, 3, 1, 2)
    stacks = np.concatenate([np.zeros_like(frames), frames[np.maximum(np.arange(40) - 1, 0)], frames], axis=1)
    led_to = np.concatenate([np.zeros_like(episode["action"][:1]), episode["action"][:-1]])
    rewards = np.arange(40, dtype=np.float32)[:, None]
    write_episode(tmp_path / "a.npz", 40, image=None, observation=stacks, action=led_to, reward=rewards)
    (report,) = inspect(tmp_path, "--json")
    assert (report["unreadable"], report["frame_sizes"]) == ([], {"64x64": 1})
    assert report["alignment"]["best_shift"] == 0
    reader = find_episodes(str(tmp_path))[0].episodes.open(0)
    np.testing.assert_array_equal(reader.read(np.array([3, 1])), episode["image"][[3, 1]])
    np.testing.assert_array_equal(reader.actions(np.arange(39)), episode["action"][:39])
    assert reader.rewards(np.array([0, 38, 39])).tolist() == [1, 39, 0]
    np.savez(tmp_path / "b.npz", observation=stacks[:, :4])
    assert "expected stacks of frames (N, 3 K, H, W)" in inspect(tmp_path)


def test_published_demonstrations_are_inspected(inspect):
    reports = inspect(real_data("demonstrations"), "--json")
    assert [(report["name"], report["num_episodes"], report["unreadable"]) for report in reports] == [
        ("hammer", 5, []),
        ("plate-slide", 5, []),
    ]


def test_arrays_that_nobody_reads_may_be_of_any_kind(inspect, tmp_path):
    """Bug prevented: notes of a recorder, as objects or in a compression of its own, made an episode invalid."""
    file = write_episode(tmp_path / "a.npz", notes=np.array([{"task": "pick"}], object))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("depth.npy", b"whatever", compress_type=zipfile.ZIP_LZMA)
        archive.writestr("odd.npy", b"no array")
        archive.writestr("readme.txt", "hello")
    text = inspect(tmp_path)
    assert "unreadable" not in text
    assert all(f"{name:<16} cannot be read" in text for name in ("notes", "depth", "odd"))
    (validation,) = (validate_dataset(dataset, 1) for dataset in find_episodes(str(tmp_path)))
    assert validation.bad == ()


def test_the_commands_are_listed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["data", "--help"])
    commands.main()
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in ("inspect", "preview", "validate", "tokenize"))
