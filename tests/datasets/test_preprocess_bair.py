"""Softmotion tfrecords of three frames instead of thirty."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.errors import UserError
from tests.datasets.conversions import episodes, make_newer, run, words
from tests.datasets.rlds_folder import example, write_tfrecords
from tests.datasets.scripts import command, load_script

pytest.importorskip("tensorflow_datasets")
converter = load_script("preprocess_bair")

NUM_FRAMES = 3


def picture(number, step, camera):
    """Differs in rows, columns and channels."""
    pixels = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3) // 7 + 16 * number + 4 * step + 2 * camera
    return pixels.astype(np.uint8)


def trajectory(number, **changed):
    features = {}
    for step in range(NUM_FRAMES):
        features[f"{step}/image_main/encoded"] = [picture(number, step, 0).tobytes()]
        features[f"{step}/image_aux1/encoded"] = [picture(number, step, 1).tobytes()]
        features[f"{step}/action"] = [float(number), float(step), 0.25, -1.0]
        features[f"{step}/endeffector_pos"] = [0.0, 0.0, 0.0]
    features.update({name.replace("_", "/", 1): value for name, value in changed.items()})
    return example({name: value for name, value in features.items() if value})


@pytest.fixture
def source(tmp_path):
    """Numbers 0, 1, 10, 11 in train, 2 in test."""
    folder = tmp_path / "softmotion"
    write_tfrecords(folder / "train" / "traj_10_to_11.tfrecords", [trajectory(10), trajectory(11)])
    write_tfrecords(folder / "train" / "traj_0_to_1.tfrecords", [trajectory(0), trajectory(1)])
    write_tfrecords(folder / "test" / "traj_2_to_2.tfrecords", [trajectory(2)])
    return folder


def convert(source, output, **flags):
    return run(converter, converter.BairArgs, input_path=source, save_path=output, **flags)


def test_contents(source, tmp_path):
    convert(source, tmp_path / "out")
    contents = episodes(tmp_path / "out")
    assert list(contents) == [
        "test/traj_00002.npz",
        *(f"train/traj_{number:05d}.npz" for number in (0, 1, 10, 11)),
    ]
    arrays = contents["train/traj_00010.npz"]
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "image": "uint8",
        "aux1_image": "uint8",
        "action": "float32",
    }
    np.testing.assert_array_equal(arrays["image"], [picture(10, step, 0) for step in range(NUM_FRAMES)])
    np.testing.assert_array_equal(arrays["aux1_image"], [picture(10, step, 1) for step in range(NUM_FRAMES)])
    np.testing.assert_array_equal(arrays["action"], [[10, step, 0.25, -1] for step in range(NUM_FRAMES)])


def test_the_camera_that_models_are_trained_on_is_read(source, tmp_path):
    convert(source, tmp_path / "out")
    yaml = tmp_path / "DATASET.yaml"
    yaml.write_text("bair_train_dataset: out/train\nbair_test_dataset: out/test\n")
    segment = SegmentSpec("contiguous", length=NUM_FRAMES)
    config = DataConfig(mix="bair", segment=segment, batch_size=1, load_action=True, dataset_yaml=str(yaml))
    batch = next(iter(build_loader(config, "test"))).to("cpu")
    assert batch.actions[0, :, :2].tolist() == [[2, 0], [2, 1], [2, 2]]
    pixels = (batch.frames[0, 1] * 255).round().byte().numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels, picture(2, 1, camera=1))


def test_bad_trajectories_are_named_and_keep_their_numbers(source, tmp_path):
    train = source / "train"
    bad = [trajectory(20, **{"1_action": None}), trajectory(21, **{"0_image_aux1/encoded": [b"short"]})]
    write_tfrecords(train / "traj_20_to_23.tfrecords", [*bad, b"\xff no example", trajectory(23)])
    truncated = train / "traj_10_to_11.tfrecords"
    truncated.write_bytes(truncated.read_bytes()[:-10])
    summary = convert(source, tmp_path / "out")
    assert [skip.source.rsplit("/")[-1] for skip in summary.skipped] == [
        "traj_10_to_11.tfrecords",
        *(f"traj_20_to_23.tfrecords#{i}" for i in range(3)),
    ]
    assert "only 1 trajectories found: truncated" in summary.skipped[0].reason
    assert "not a tf.train.Example" in summary.skipped[3].reason
    assert {"train/traj_00010.npz", "train/traj_00023.npz"} <= set(episodes(tmp_path / "out"))


def test_the_command_goes_on_where_it_stopped(source, tmp_path):
    done = command(tmp_path, "preprocess_bair", *words(input_path=source, save_path="out", num_workers=1))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5 episodes written, 0 were there before, 0 skipped\n"
    (tmp_path / "out" / "train" / "traj_00010.npz").unlink()
    summary = convert(source, tmp_path / "out")
    assert (summary.written, summary.existing) == (1, 4)
    make_newer(source / "train" / "traj_0_to_1.tfrecords")
    assert convert(source, tmp_path / "out").outdated == 2


def test_one_folder_keeps_to_one_input(source, tmp_path):
    """Bug prevented: trajectories of two recordings with the same numbers, of which the second were left out."""
    convert(source, tmp_path / "out")
    shutil.copytree(source, tmp_path / "other")
    with pytest.raises(UserError, match=r"input_path was .*softmotion, is .*other"):
        convert(tmp_path / "other", tmp_path / "out")


def test_gifs_show_both_cameras(source, tmp_path):
    convert(source, tmp_path / "out", save_gif=True, max_num_episodes=1)
    with Image.open(tmp_path / "out" / "train" / "traj_00000.gif") as gif:
        assert (gif.n_frames, gif.size) == (NUM_FRAMES, (128, 64))


def test_a_folder_without_trajectories(tmp_path):
    with pytest.raises(UserError, match=r"no {train,test}/traj_<first>_to_<last>\.tfrecords there"):
        convert(tmp_path, tmp_path / "out")
