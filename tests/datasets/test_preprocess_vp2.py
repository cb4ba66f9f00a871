from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.errors import UserError
from tests.datasets.conversions import episodes, make_newer, run, words
from tests.datasets.scripts import DATASETS, load_script

h5py = pytest.importorskip("h5py")
converter = load_script("preprocess_vp2")

CAMERA = {"robodesk": "camera_image", "robosuite": "agentview_shift_2_image"}


def write_hdf5(path, kind, train=2, valid=1, num_frames=3, size=(8, 8), action_dim=5):
    """Demonstration i is of colour i; the last ones are for validation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"demo_{i}" for i in range(train + valid)]
    with h5py.File(path, "w") as file:
        file["mask/train"] = np.array(names[:train], "S8")
        file.create_dataset("mask/valid", data=names[train:], dtype=h5py.string_dtype())
        for i, name in enumerate(names):
            frames = np.full((num_frames, *size, 3), i, np.uint8)
            file.create_dataset(f"data/{name}/obs/{CAMERA[kind]}", data=frames, compression="gzip")
            file[f"data/{name}/obs/other_image"] = frames[:1]
            file[f"data/{name}/actions"] = np.full((num_frames, action_dim), i / 2)
    return path


def convert(source, output, **flags):
    return run(converter, converter.Vp2Args, dir_path=source, save_path=output, **flags)


@pytest.fixture
def robodesk(tmp_path):
    folder = tmp_path / "robodesk"
    write_hdf5(folder / "push_red" / "noise_0.1.hdf5", "robodesk")
    write_hdf5(folder / "push_red" / "noise_0.2.hdf5", "robodesk", train=1)
    write_hdf5(folder / "slide" / "scripted.hdf5", "robodesk", train=12, valid=1)
    return folder


def load_one(tmp_path, mix, key, split):
    yaml = tmp_path / "DATASET.yaml"
    yaml.write_text(f"{key}: out\n")
    segment = SegmentSpec("contiguous", length=3)
    config = DataConfig(mix=mix, segment=segment, batch_size=1, load_action=True, dataset_yaml=str(yaml))
    return next(iter(build_loader(config, split))).to("cpu")


def test_robodesk(robodesk, trains, tmp_path):
    """Sub-folders are kept, noise goes by its level, and what is written trains."""
    convert(robodesk, tmp_path / "out")
    contents = episodes(tmp_path / "out")
    assert [name for name in contents if name.startswith("push_red")] == [
        "push_red/train_noise1/train_eps_demo_00000.npz",
        "push_red/train_noise1/train_eps_demo_00001.npz",
        "push_red/train_noise2/train_eps_demo_00000.npz",
        "push_red/validation_noise1/validation_eps_demo_00002.npz",
        "push_red/validation_noise2/validation_eps_demo_00001.npz",
    ]
    arrays = contents["slide/validation/validation_eps_demo_00012.npz"]
    assert arrays["image"].shape == (3, 8, 8, 3)
    assert (arrays["image"] == 12).all()
    assert (arrays["action"] == np.full((3, 5), 6, np.float32)).all()
    assert arrays["action"].dtype == np.float32
    for split in ("train", "test"):
        batch = load_one(tmp_path, "vp2_robodesk", "robodesk_dataset", split)
        np.testing.assert_allclose(batch.actions[0, 0, 0] * 2, batch.frames[0, 0, 0, 0, 0] * 255, atol=1e-4)
    trains(oxe_data_mixes_type="vp2_robodesk", action_dim=5, dataset_yaml=tmp_path / "DATASET.yaml")


def test_robosuite(tmp_path):
    write_hdf5(tmp_path / "robosuite" / "5k_slice_noise_0.1.hdf5", "robosuite", action_dim=4)
    convert(tmp_path / "robosuite", tmp_path / "out")
    assert list(episodes(tmp_path / "out")) == [
        "train/train_eps_demo_00000.npz",
        "train/train_eps_demo_00001.npz",
        "validation/validation_eps_demo_00002.npz",
    ]
    assert load_one(tmp_path, "vp2_robosuite", "robosuite_dataset", "test").actions.shape == (1, 3, 4)


def test_bad_demonstrations_are_named(robodesk, tmp_path):
    path = robodesk / "slide" / "scripted.hdf5"
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/actions"]
        del file["data/demo_3"]
        del file["data/demo_5/actions"]
        file["data/demo_5/actions"] = np.zeros((9, 5))
        file["mask/train"][7] = b"seven"
    (robodesk / "text.hdf5").write_text("no HDF5")
    summary = convert(robodesk, tmp_path / "out")
    reasons = {skip.source.removeprefix(str(robodesk)): skip.reason for skip in summary.skipped}
    expected = {
        "/slide/scripted.hdf5#demo_1": "'actions' doesn't exist",
        "/slide/scripted.hdf5#demo_3": "'demo_3' doesn't exist",
        "/slide/scripted.hdf5#demo_5": "actions of shape (9, 5) for 3 frames",
        "/slide/scripted.hdf5#seven": "such as demo_12",
        "/text.hdf5": "not the HDF5 file expected here",
    }
    assert reasons.keys() == expected.keys()
    assert all(part in reasons[source] for source, part in expected.items())
    assert len(episodes(tmp_path / "out")) == 5 + 13 - 4


def test_a_changed_file_is_converted_again(robodesk, tmp_path):
    convert(robodesk, tmp_path / "out")
    make_newer(robodesk / "push_red" / "noise_0.2.hdf5")
    assert convert(robodesk, tmp_path / "out").outdated == 2


def test_one_folder_keeps_to_one_input(robodesk, tmp_path):
    """Bug prevented: demonstrations of one number from two folders, of which the second were left out."""
    convert(robodesk / "slide", tmp_path / "out")
    with pytest.raises(UserError, match=r"dir_path was .*slide, is .*push_red"):
        convert(robodesk / "push_red", tmp_path / "out")


def test_a_path_of_no_simulator(tmp_path):
    write_hdf5(tmp_path / "a" / "b.hdf5", "robodesk")
    with pytest.raises(UserError, match="the path has to hold one of robodesk, robosuite"):
        convert(tmp_path / "a", tmp_path / "out")
    with pytest.raises(UserError, match=r"no \.hdf5 files there"):
        convert(tmp_path / "out", tmp_path / "out")


def test_terminated_in_the_middle_it_leaves_whole_files_and_goes_on(tmp_path):
    """Bug prevented: half-written episodes that count as done, and workers that outlive their parent."""
    source = tmp_path / "robosuite"
    write_hdf5(source / "demo.hdf5", "robosuite", train=60, valid=0, num_frames=8, size=(128, 128))
    line = [sys.executable, DATASETS / "preprocess_vp2.py", *words(dir_path=source, save_path="out", num_workers=2)]
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not any(tmp_path.glob("out/train/*.npz")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)  # ends when the last process has closed its end of the pipe
    assert process.returncode == -signal.SIGTERM
    for unfinished in tmp_path.glob("out/train/.*.partial"):
        unfinished.unlink()  # as a run does a minute later
    before = episodes(tmp_path / "out")  # which refuses anything but whole episodes
    assert 0 < len(before) < 60
    summary = convert(source, tmp_path / "out")
    assert (summary.existing, summary.written) == (len(before), 60 - len(before))
