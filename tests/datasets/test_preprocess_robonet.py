"""RoboNet files with cameras in both encodings. Videos lose a little: colours are compared roughly."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.errors import UserError
from ivideogpt.flags import parse
from tests.datasets.conversions import episodes, make_newer, run, words
from tests.datasets.scripts import command, load_script

av = pytest.importorskip("av")
h5py = pytest.importorskip("h5py")
converter = load_script("preprocess_robonet")

SIZE = (48, 64)


def pictures(num_frames):
    """Red, and brighter from frame to frame."""
    frames = np.zeros((num_frames, *SIZE, 3), np.uint8)
    frames[..., 0] = 100 + 20 * np.arange(num_frames)[:, None, None]
    return frames


def mp4(frames):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return np.frombuffer(buffer.getvalue(), np.uint8)


def jpg(frame):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def write_camera(env, frames, encoding, image_format):
    stored = frames[..., ::-1] if image_format == "BGR" else frames
    arrays = {"frames": mp4(stored)} if encoding == "mp4" else {f"frame{i}": jpg(x) for i, x in enumerate(stored)}
    for name, content in arrays.items():
        dataset = env.create_dataset(f"cam0_video/{name}", data=content)
        if name in ("frames", "frame0"):
            dataset.attrs.update(shape=frames.shape[1:], image_format=image_format)
            if encoding == "mp4":  # the number of frames: published files with jpg have no such attribute
                dataset.attrs["T"] = len(frames)


def write_hdf5(
    path,
    frames=4,
    states=4,
    actions=3,
    action_dim=4,
    encoding="jpg",
    image_format="RGB",
    primitives="autograsp",
    bounds="env",
):
    """State i ends in i, of bounds 0 and 3; action i starts with i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        env = file.create_group("env")
        env.attrs.update(n_cams=1, cam_encoding=encoding)
        write_camera(env, pictures(frames), encoding, image_format)
        env["state"] = np.linspace(0, states - 1, states)[:, None] * np.ones(5)
        file["policy/actions"] = np.arange(actions)[:, None] + np.arange(1, action_dim + 1) / 10
        metadata = file.create_group("metadata")
        if primitives:
            metadata.attrs["primitives"] = primitives
        low, high = np.array([-1.0, 0.0]), np.array([1.0, 3.0])
        if bounds == "metadata":
            metadata.attrs.update(low_bound=low, high_bound=high)
        else:
            env["low_bound"], env["high_bound"] = np.stack([low, low + 9]), np.stack([high, high + 9])
    return path


def convert(source, output, **flags):
    return run(converter, converter.RoboNetArgs, hdf5_path=source, save_path=output, **flags)


def convert_one(tmp_path, **content):
    write_hdf5(tmp_path / "in" / "a.hdf5", **content)
    convert(tmp_path / "in", tmp_path / "out", no_test_split=True, on_bad_episode="error")
    return episodes(tmp_path / "out")["train/a.npz"]


@pytest.mark.parametrize("encoding", ["mp4", "jpg"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_frames_are_in_rgb_order(tmp_path, encoding, image_format):
    """Bug prevented: red and blue swapped, which trains as well as the right order."""
    arrays = convert_one(tmp_path, encoding=encoding, image_format=image_format)
    assert arrays["image"].shape == (4, *SIZE, 3)
    assert arrays["image"].dtype == np.uint8
    np.testing.assert_allclose(arrays["image"].astype(int), pictures(4), atol=6)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [((4, 4, 3), 4), ((5, 4, 9), 4), ((4, 5, 9), 4), ((9, 9, 3), 4), ((4, 4, 4), 4)],
    ids=["one action less", "states end", "frames end", "actions end", "as many actions"],
)
def test_frames_and_the_actions_between_them(tmp_path, lengths, expected):
    frames, states, actions = lengths
    arrays = convert_one(tmp_path, frames=frames, states=states, actions=actions, action_dim=5)
    assert (len(arrays["image"]), len(arrays["action"])) == (expected, expected - 1)
    np.testing.assert_allclose(arrays["action"][:, 0], np.arange(expected - 1) + 0.1, rtol=1e-6)


@pytest.mark.parametrize("bounds", ["env", "metadata"])
def test_an_automatic_gripper_is_read_off_the_next_state(tmp_path, bounds):
    """States end in 0, 1, 2, 3 of bounds 0 and 3: action 0 leads to 1, below the midpoint; the others lead above it."""
    arrays = convert_one(tmp_path, bounds=bounds)
    expected = [[0.1, 0.2, 0.3, 0.4, 0], [1.1, 1.2, 1.3, 1.4, 3], [2.1, 2.2, 2.3, 2.4, 3]]
    assert arrays["action"].dtype == np.float32
    np.testing.assert_allclose(arrays["action"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("dim", "first"),
    [
        (2, [0.1, 0.2, 0, 0, 0]),
        (3, [0.1, 0.2, 0.3, 0, 0]),
        (5, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (7, [0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_other_dimensions_are_padded_or_cut(tmp_path, dim, first):
    arrays = convert_one(tmp_path, action_dim=dim, primitives=None)
    np.testing.assert_allclose(arrays["action"][0], first, rtol=1e-6)


@pytest.mark.parametrize("primitives", [None, "none"])
def test_four_dimensions_without_an_automatic_gripper_are_an_error(tmp_path, primitives):
    with pytest.raises(UserError, match=r"a\.hdf5: actions have 4 dimensions"):
        convert_one(tmp_path, primitives=primitives)


@pytest.fixture
def source(tmp_path):
    for name in ("one", "two", "sub/three", "four"):
        write_hdf5(tmp_path / "in" / f"{name}.hdf5", encoding="mp4")
    (tmp_path / "test.txt").write_text("two.hdf5\nthree.hdf5\nnot_here.hdf5\n")
    return tmp_path / "in"


def test_the_test_list_decides_and_both_splits_are_read(source, tmp_path):
    flags = words(hdf5_path=source, save_path="out", test_list="test.txt", num_workers=2)
    done = command(tmp_path, "preprocess_robonet", *flags)
    assert done.returncode == 0, done.stderr
    assert "1 of the 3 files of the test split are not there, not_here first" in done.stderr
    assert done.stdout == "4 episodes written, 0 were there before, 0 skipped\n"
    assert list(episodes(tmp_path / "out")) == ["test/three.npz", "test/two.npz", "train/four.npz", "train/one.npz"]
    yaml = tmp_path / "DATASET.yaml"
    yaml.write_text("robonet_train_dataset: out/train\nrobonet_test_dataset: out/test\n")
    segment = SegmentSpec("contiguous", length=4)
    config = DataConfig(mix="tfds_robonet", segment=segment, batch_size=2, load_action=True, dataset_yaml=str(yaml))
    for split in ("train", "test"):
        assert next(iter(build_loader(config, split))).actions.shape == (2, 4, 5)


def test_a_changed_file_is_converted_again(source, tmp_path):
    for outdated in (0, 1):
        assert convert(source, tmp_path / "out", no_test_split=True).outdated == outdated
        make_newer(source / "two.hdf5")


def test_the_published_test_split_is_the_default(tmp_path, capsys):
    """Bug prevented: test episodes that are trained on because a list was forgotten."""
    for name in ("google_traj15809", "mine"):
        write_hdf5(tmp_path / "in" / f"{name}.hdf5")
    convert(tmp_path / "in", tmp_path / "out")
    assert list(episodes(tmp_path / "out")) == ["test/google_traj15809.npz", "train/mine.npz"]
    assert "255 of the 256 files of the test split are not there" in capsys.readouterr().err
    assert len(converter.read_names(converter.ROBONET_TEST_LIST)) == 256


def test_one_folder_keeps_to_one_test_list_and_input(source, tmp_path):
    """Bug prevented: episodes of the first test list in test/ and, by the second one, in train/ as well."""
    convert(source, tmp_path / "out", test_list=tmp_path / "test.txt")
    (tmp_path / "copy.txt").write_text("three\nnot_here\ntwo\n")
    assert convert(source, tmp_path / "out", test_list=tmp_path / "copy.txt").existing == 4
    (tmp_path / "test.txt").write_text("one.hdf5\n")
    with pytest.raises(UserError, match=r"test_list was 3 names, checksum \w+, is 1 names, .*: name another folder"):
        convert(source, tmp_path / "out", test_list=tmp_path / "test.txt")
    with pytest.raises(UserError, match=r"test_list was 3 names, .* is 0 names"):
        convert(source, tmp_path / "out", no_test_split=True)
    with pytest.raises(UserError, match=r"hdf5_path was .*in, is .*sub"):
        convert(source / "sub", tmp_path / "out", test_list=tmp_path / "copy.txt")


def test_a_test_list_and_no_test_split_contradict_each_other():
    flags = ["--test_list", "x", "--no_test_split"]
    with pytest.raises(UserError, match=r"--test_list names a test split and --no_test_split makes none"):
        parse(converter.RoboNetArgs, ["--hdf5_path", "in", "--save_path", "out", *flags])


def test_unreadable_lists(source, tmp_path):
    with pytest.raises(UserError, match=r"--test_list .*cannot be read"):
        convert(source, tmp_path / "out", test_list=tmp_path)
    (tmp_path / "test.txt").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        convert(source, tmp_path / "out", test_list=tmp_path / "test.txt")
    with pytest.raises(UserError, match=r"no \.hdf5 files there"):
        convert(tmp_path / "empty", tmp_path / "out", no_test_split=True)


def spoil_camera(file):
    content = file["env/cam0_video/frames"][()]
    file["env/cam0_video/frames"][...] = np.zeros_like(content)


def claim_much(file):
    del file["env/state"]
    file.create_dataset("env/state", (10**12, 5), "f8", chunks=(1000, 5))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file["env"].attrs.pop("cam_encoding"), "cam_encoding"),
        (lambda file: file["env"].attrs.update(cam_encoding="png"), "expected mp4 or jpg"),
        (lambda file: file["env/cam0_video/frames"].attrs.update(image_format="HSV"), "expected RGB or BGR"),
        (lambda file: file.pop("policy/actions"), "actions"),
        (spoil_camera, "no readable mp4"),
        (claim_much, "claims 40000000000000 bytes that are not there"),
        (lambda file: file["policy/actions"].write_direct(np.full((3, 4), np.nan)), "NaN"),
    ],
)
def test_bad_files_are_named(source, tmp_path, spoil, reason):
    with h5py.File(source / "one.hdf5", "r+") as file:
        spoil(file)
    (source / "text.hdf5").write_text("no HDF5")
    summary = convert(source, tmp_path / "out", no_test_split=True)
    assert [skip.source for skip in summary.skipped] == [str(source / "one.hdf5"), str(source / "text.hdf5")]
    assert reason in summary.skipped[0].reason
    assert "not the HDF5 file expected here" in summary.skipped[1].reason
    assert len(episodes(tmp_path / "out")) == 3
