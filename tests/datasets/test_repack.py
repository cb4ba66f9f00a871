"""Trees of real npz files, small ones."""

import os

import numpy as np
import pytest
import torch

from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import Preprocess, central_square
from ivideogpt.data.formats.episodes import open_episode
from ivideogpt.data.formats.npz_arrays import NpzMember
from ivideogpt.errors import UserError
from ivideogpt.flags import parse
from tests.data.synthetic import write_dataset, write_episode
from tests.datasets.scripts import command, load_script

repack = load_script("repack")


def run(source, output, *flags):
    argv = ["--input_path", str(source), "--output_path", str(output), "--num_workers", "1", *flags]
    return repack.run(parse(repack.RepackArgs, argv))


def noise(num_frames=6, size=(20, 30), dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, (num_frames, *size, 3)).astype(dtype)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npz"))}


def test_the_command_keeps_folders_and_arrays_and_its_output_is_read(tmp_path):
    """In two processes from any directory: frames, actions and all else are the same, but no longer compressed."""
    extra = {"image2": noise(20, dtype=np.int64), "state": np.array([[np.nan, 1.0]] * 20), "task": np.array("push")}
    write_dataset(tmp_path / "in" / "robot", 3, save=np.savez_compressed, **extra)
    write_dataset(tmp_path / "in" / "other" / "train", 2, save=np.savez_compressed)
    originals = files(tmp_path / "in")
    done = command(tmp_path, "repack", "--input_path", "in", "--output_path", "out", "--num_workers", 2)
    assert done.returncode == 0, done.stderr
    assert "5 episodes written, 0 were there before, 0 skipped" in done.stdout
    assert "5/5" in done.stderr  # the progress bar
    assert files(tmp_path / "in") == originals
    assert list(files(tmp_path / "out")) == list(originals)
    for name in originals:
        with np.load(tmp_path / "in" / name) as before, np.load(tmp_path / "out" / name) as after:
            assert before.files == after.files
            for key in before.files:
                np.testing.assert_array_equal(before[key], after[key])
                assert after[key].dtype == (np.uint8 if key == "image2" else before[key].dtype)
    episode = open_episode(str(tmp_path / "out" / "robot" / "00000.npz"))
    assert episode.images.data_offset is not None  # stored plainly: a clip is read through a memory map

    def first_batch(root):
        config = DataConfig(str(root), "folder:robot", SegmentSpec(length=4), image_size=8, load_action=True)
        return next(iter(build_loader(config))).to("cpu")

    before, after = first_batch(tmp_path / "in"), first_batch(tmp_path / "out")
    assert torch.equal(before.frames, after.frames)
    assert torch.equal(before.actions, after.actions)


def test_the_home_folder_is_found_behind_an_equals_sign(tmp_path, monkeypatch):
    """A folder named ~ was made in the current one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_dataset(tmp_path / "home" / "in", 1)
    done = command(tmp_path, "repack", "--input_path=~/in", "--output_path=~/out", "--num_workers", 1)
    assert done.returncode == 0, done.stderr
    assert list(files(tmp_path / "home" / "out")) == list(files(tmp_path / "home" / "in"))
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("square_crop", [False, True])
def test_resizing_is_the_trainings_own(tmp_path, square_crop):
    """A model trained on other pixels than it is evaluated on scores lower, and nothing says why."""
    write_episode(tmp_path / "in" / "one.npz", 6, image=noise())
    run(tmp_path / "in", tmp_path / "out", "--resize", "8", "--square_crop", str(square_crop))
    with np.load(tmp_path / "out" / "one.npz") as file:
        stored = file["image"]
        assert stored.flags.c_contiguous  # a clip is one piece of the file
    assert (stored.shape, stored.dtype) == ((6, 8, 8, 3), np.uint8)
    trained = Preprocess(8, square_crop)(noise(), np.random.default_rng(0)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(stored, trained, atol=0.5001)
    assert stored.shape[1:3] == central_square(8, 8)(stored).shape[1:3]  # cropping it again changes nothing


def test_frames_in_fortran_order_and_replay_files(tmp_path):
    replay = {"observation": np.arange(2 * 9 * 4 * 4, dtype=np.uint8).reshape(2, 9, 4, 4), "reward": np.zeros((2, 1))}
    write_episode(tmp_path / "in" / "a.npz", 6, image=np.asfortranarray(noise()))
    np.savez(tmp_path / "in" / "b.npz", **replay)
    run(tmp_path / "in", tmp_path / "out")
    with np.load(tmp_path / "out" / "a.npz") as file:
        np.testing.assert_array_equal(file["image"], noise())
        assert file["image"].flags.c_contiguous
    with np.load(tmp_path / "out" / "b.npz") as file:
        np.testing.assert_array_equal(file["observation"], replay["observation"])


def test_it_goes_on_where_it_stopped(tmp_path):
    write_dataset(tmp_path / "in", 3)
    assert run(tmp_path / "in", tmp_path / "out", "--max_num_episodes", "2").written == 2
    kept = (tmp_path / "out" / "00000.npz").stat().st_mtime_ns
    summary = run(tmp_path / "in", tmp_path / "out")
    assert (summary.written, summary.existing) == (1, 2)
    assert (tmp_path / "out" / "00000.npz").stat().st_mtime_ns == kept
    assert run(tmp_path / "in", tmp_path / "out").existing == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "00000.npz", "00001.npz", "00002.npz", "conversion.json",
    }  # fmt: skip


def test_a_changed_original_is_repacked_again(tmp_path):
    write_dataset(tmp_path / "in", 2)
    run(tmp_path / "in", tmp_path / "out")
    write_episode(tmp_path / "in" / "00001.npz", num_frames=7)
    summary = run(tmp_path / "in", tmp_path / "out")
    assert (summary.written, summary.existing) == (1, 1)
    assert open_episode(str(tmp_path / "out" / "00001.npz")).num_frames == 7


def test_verifying_finds_and_replaces_a_damaged_file(tmp_path, capsys):
    """A flipped bit in a frame is seen by no reader: uncompressed arrays are mapped without a check."""
    write_dataset(tmp_path / "in", 2)
    run(tmp_path / "in", tmp_path / "out")
    good = files(tmp_path / "out")
    damaged = bytearray(good["00001.npz"])
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "out" / "00001.npz").write_bytes(damaged)
    assert run(tmp_path / "in", tmp_path / "out").written == 0
    capsys.readouterr()
    assert run(tmp_path / "in", tmp_path / "out", "--verify").written == 1
    assert "1 files differed from their checksums" in capsys.readouterr().out
    assert run(tmp_path / "in", tmp_path / "out", "--verify").written == 0


def test_a_shard_verifies_its_own_files(tmp_path, capsys):
    """Bug prevented: damaged files of other shards were deleted, and not written again."""
    write_dataset(tmp_path / "in", 4)
    run(tmp_path / "in", tmp_path / "out")
    good = files(tmp_path / "out")
    for name, content in good.items():
        (tmp_path / "out" / name).write_bytes(content[:-9])
    assert run(tmp_path / "in", tmp_path / "out", "--verify", "--shard", "1/2").written == 2
    assert "2 files differed" in capsys.readouterr().out
    now = files(tmp_path / "out")
    assert now.keys() == good.keys()
    assert [now[name] == content for name, content in good.items()] == [False, True, False, True]


@pytest.mark.parametrize("shard", [(), ("--shard", "0/1")])
def test_the_first_episodes_of_every_folder(tmp_path, shard):
    """Bug prevented: --max_num_episodes took the first folder's alone."""
    for robot in ("a", "b/c", "b"):
        write_dataset(tmp_path / "in" / robot, 3)
    run(tmp_path / "in", tmp_path / "out", "--max_num_episodes", "2", *shard)
    assert list(files(tmp_path / "out")) == [
        f"{robot}/0000{i}.npz" for robot, numbers in (("a", "01"), ("b", "01"), ("b/c", "01")) for i in numbers
    ]


def test_bad_files_are_skipped_and_named(tmp_path):
    write_dataset(tmp_path / "in", 1)
    np.savez(tmp_path / "in" / "objects.npz", info=np.array([{}], dtype=object))
    write_episode(tmp_path / "in" / "range.npz", image=noise(20, dtype=np.int64) + 9)
    (tmp_path / "in" / "torn.npz").write_bytes((tmp_path / "in" / "00000.npz").read_bytes()[:500])
    summary = run(tmp_path / "in", tmp_path / "out")
    assert (summary.written, len(summary.skipped)) == (1, 3)
    assert "objects.npz: no array that can be read" in str(summary)
    assert "range.npz: array 'image' holds values from 9 to 264" in str(summary)
    assert "torn.npz: truncated or not an npz file" in str(summary)
    with pytest.raises(UserError, match=r"objects.npz"):
        run(tmp_path / "in", tmp_path / "out", "--on_bad_episode", "error")


def test_arrays_that_training_never_reads_may_be_of_any_kind(tmp_path, capsys):
    """Bug prevented: an array of objects, or of motion in pixels, made every episode of a data set a bad one."""
    flow = np.full((20, 8, 8, 3), -3, np.int16)
    write_dataset(tmp_path / "in", 3, flow=flow, depth=flow + 300, lang=np.array([{"task": "pick"}], object))
    assert run(tmp_path / "in", tmp_path / "out", "--resize", "4").written == 3
    assert capsys.readouterr().err.count("left out, as they hold Python objects: lang\n") == 1
    with np.load(tmp_path / "out" / "00001.npz") as file:
        assert set(file.files) == {"image", "action", "reward", "flow", "depth"}
        assert file["image"].shape == (20, 4, 4, 3)
        for name, wanted in (("flow", flow), ("depth", flow + 300)):
            np.testing.assert_array_equal(file[name], wanted)
            assert file[name].dtype == np.int16


def test_no_array_is_inflated_twice(tmp_path, monkeypatch):
    """Telling whether int64 frames are a camera inflated them a second time."""
    write_episode(tmp_path / "in" / "a.npz", save=np.savez_compressed, wrist=noise(20, dtype=np.int64))
    inflated, read = [], NpzMember.all
    monkeypatch.setattr(NpzMember, "all", lambda member: inflated.append(member.name) or read(member))
    assert run(tmp_path / "in", tmp_path / "out").written == 1
    assert sorted(inflated) == ["action", "image", "reward", "wrist"]


def test_originals_cannot_be_overwritten(tmp_path):
    write_dataset(tmp_path / "in" / "robot", 1)
    originals = files(tmp_path / "in")
    for output in (tmp_path / "in", tmp_path / "in" / "robot" / "fast"):
        with pytest.raises(UserError, match="is inside --input_path"):
            run(tmp_path / "in", output)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "robot").symlink_to(tmp_path / "in" / "robot")
    with pytest.raises(UserError, match="was not written by this command"):
        run(tmp_path / "in", tmp_path / "out")
    assert files(tmp_path / "in") == originals


def test_files_of_others_and_other_settings_are_refused(tmp_path):
    write_dataset(tmp_path / "in", 2)
    write_dataset(tmp_path / "foreign", 1)
    with pytest.raises(UserError, match=r"00000.npz was not written by this command"):
        run(tmp_path / "in", tmp_path / "foreign")
    run(tmp_path / "in", tmp_path / "out")
    with pytest.raises(UserError, match="resize was None, is 4"):
        run(tmp_path / "in", tmp_path / "out", "--resize", "4")


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_dataset(tmp_path / "elsewhere", 1)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "robot").symlink_to(tmp_path / "elsewhere")
    os.symlink(tmp_path / "in", tmp_path / "elsewhere" / "loop")
    assert run(tmp_path / "in", tmp_path / "out").written == 1
    assert list(files(tmp_path / "out")) == ["robot/00000.npz"]


def test_user_errors_are_one_line(tmp_path):
    done = command(tmp_path, "repack", "--input_path", "nowhere", "--output_path", "out")
    assert done.returncode == 2
    assert done.stderr == "error: --input_path nowhere: no such folder; expected one with .npz files in it or below\n"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no .npz files in it or below"):
        run(tmp_path / "empty", tmp_path / "out")
