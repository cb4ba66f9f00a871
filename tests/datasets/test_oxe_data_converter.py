"""RLDS folders with more shards, and more records in a shard, than are interleaved at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.errors import UserError
from tests.datasets.conversions import episodes, make_newer, run, words
from tests.datasets.rlds_folder import NUM_STEPS, frame, write_rlds
from tests.datasets.scripts import command, load_script
from tests.real_data import real_data

pytest.importorskip("tensorflow_datasets")
converter = load_script("oxe_data_converter")

LENGTHS = [16, 3, 33, 17, *[2] * 12, 5, 20, 1]
# What builder.as_dataset("train") yields for these shards: (shard, first record, number of records). Shards 1 and 4 to
# 15 end within a block and make room; shard 0 ends with its block, which is found out a round later.
ORDER = [
    *[(0, 0, 16), (1, 0, 3), (2, 0, 16), (3, 0, 16)],
    *[(shard, 0, 2) for shard in range(4, 16)],
    *[(16, 0, 5), (2, 16, 16), (3, 16, 1), (17, 0, 16), (18, 0, 1), (2, 32, 1), (17, 16, 4)],
]


def convert(source, output, dataset_name="toy", **flags):
    flags = {"dataset_name": dataset_name, "input_path": source, "output_path": output, **flags}
    return run(converter, converter.OxeArgs, **flags)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oxe")
    write_rlds(folder / "toy" / "0.1.0", {"train": LENGTHS, "val": [4]})
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    summary = convert(source, folder, actions=True)
    assert (summary.written, summary.skipped) == (sum(LENGTHS) + 4, ())
    return folder


def places(contents, split="train"):
    """(shard, record) of the episodes of a split, as their actions say."""
    return [tuple(map(int, arrays["action"][0, :2])) for name, arrays in contents.items() if f"/{split}_eps" in name]


def test_numbers_are_those_of_as_dataset(converted):
    """Bug prevented: other numbers than the published lists of episodes use."""
    contents = episodes(converted)
    assert list(contents)[:2] == ["toy/train_eps_00000000.npz", "toy/train_eps_00000001.npz"]
    expected = [(shard, first + i) for shard, first, number in ORDER for i in range(number)]
    assert places(contents) == expected
    assert places(contents, "val") == [(0, i) for i in range(4)]


def test_tensorflow_has_the_same_order(source, converted):
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(source / "toy" / "0.1.0"))
    steps = [next(iter(episode["steps"]))["action"].numpy() for episode in builder.as_dataset(split="train")]
    assert [tuple(map(int, action[:2])) for action in steps] == places(episodes(converted))


def test_contents(converted):
    arrays = episodes(converted)["toy/train_eps_00000017.npz"]
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "image": ((NUM_STEPS, 4, 6, 3), "uint8"),
        "action": ((NUM_STEPS, 4), "float32"),
        "language_instruction": ((NUM_STEPS,), "<U12"),
    }
    assert set(arrays["language_instruction"]) == {"pick block 1"}
    np.testing.assert_array_equal(arrays["image"], [frame(1, 1, step) for step in range(NUM_STEPS)])
    np.testing.assert_array_equal(arrays["action"], [[1, 1, step, 0.5] for step in range(NUM_STEPS)])


def test_loaders_read_it(converted):
    segment = SegmentSpec("contiguous", length=2)
    config = DataConfig(str(converted), "folder:toy", segment, image_size=8, batch_size=2, load_action=True)
    batch = next(iter(build_loader(config))).to("cpu")
    assert (batch.frames.shape, batch.actions.shape) == ((2, 2, 3, 8, 8), (2, 2, 4))


def test_a_command_from_anywhere_goes_on_where_it_stopped(source, converted, tmp_path):
    """Two processes, each split up to its tenth episode; frames only, as in the released converter."""
    flags = {
        "dataset_name": "toy",
        "input_path": source,
        "output_path": "out",
        "num_workers": 2,
        "max_num_episodes": 10,
    }
    done = command(tmp_path, "oxe_data_converter", *words(**flags))
    assert done.returncode == 0, done.stderr
    assert "14/14" in done.stderr
    assert done.stdout.splitlines() == [
        f"toy: {source}/toy/0.1.0",
        "arrays: image from observation/image, language_instruction from observation/natural_language_instruction",
        "left out: actions, which --actions or --action_key store",
        "14 episodes written, 0 were there before, 0 skipped",
    ]
    contents, whole = episodes(tmp_path / "out"), episodes(converted)
    assert [name for name in whole if name.startswith("toy/val") or name < "toy/train_eps_00000010"] == list(contents)
    for name, arrays in contents.items():
        assert list(arrays) == ["image", "language_instruction"]
        np.testing.assert_array_equal(arrays["image"], whole[name]["image"])
    (tmp_path / "out/toy/train_eps_00000003.npz").unlink()
    summary = convert(source, tmp_path / "out", max_num_episodes=12)
    assert (summary.written, summary.existing) == (3, 13)
    make_newer(next((source / "toy" / "0.1.0").glob("*-val.*")))
    assert convert(source, tmp_path / "out", max_num_episodes=12).outdated == 4


def test_damage_costs_its_own_episodes_only(source, converted, tmp_path, capsys):
    """Bug prevented: numbers that move up behind a missing record."""
    folder = tmp_path / "toy" / "0.1.0"
    folder.mkdir(parents=True)
    for path in (source / "toy" / "0.1.0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    truncated, changed, gone = (folder / f"toy-train.tfrecord-{shard:05d}-of-00019" for shard in (2, 3, 4))
    truncated.write_bytes(truncated.read_bytes()[:-20])
    content = bytearray(changed.read_bytes())
    content[200] ^= 1
    changed.write_bytes(content)
    gone.unlink()
    summary = convert(tmp_path, tmp_path / "out", actions=True)
    assert [(skip.source.rsplit("-of-00019")[-1], skip.reason.split(":")[-1][:12]) for skip in summary.skipped] == [
        ("#0", " the record "),
        ("#0", "no such file"),
        ("#1", "no such file"),
        ("#32", " the record "),
    ]
    assert (
        "missing: 1 of 19 files of split train, with 2 of 119 episodes; the first: toy-train" in capsys.readouterr().out
    )
    whole = episodes(converted)
    contents = episodes(tmp_path / "out")
    assert len(whole) - len(contents) == 4
    assert all((whole[name]["action"] == arrays["action"]).all() for name, arrays in contents.items())
    with pytest.raises(UserError, match=r"wrong checksum.*--on_bad_episode skip"):
        convert(tmp_path, tmp_path / "other", on_bad_episode="error")


def test_one_folder_keeps_to_one_input(tmp_path):
    """Bug prevented: episodes of two data sets of one name and version under the numbers of one."""
    for place in ("a", "b"):
        write_rlds(tmp_path / place / "toy" / "0.1.0", {"train": [1]})
    convert(tmp_path / "a", tmp_path / "out")
    with pytest.raises(UserError, match=r"input_path was .*a/toy/0.1.0, is .*b/toy/0.1.0"):
        convert(tmp_path / "b", tmp_path / "out")


def test_a_shard_with_too_many_records_is_refused(tmp_path):
    folder = write_rlds(tmp_path / "toy" / "0.1.0", {"train": [3]})
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["2"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"holds 3 records, dataset_info.json lists 2"):
        convert(tmp_path, tmp_path / "out")


def test_the_cameras_of_a_family_share_a_folder(tmp_path):
    """uiuc_d3field3 is the camera image_3 of uiuc_d3field; actions in parts become one vector. It has no texts."""
    cameras = ["image_1", "image_2", "image_3"]
    write_rlds(tmp_path / "uiuc_d3field" / "0.1.0", {"train": [1]}, cameras, {"xyz": 3, "grip": 1}, text=None)
    convert(tmp_path, tmp_path / "out", "uiuc_d3field3", actions=True)
    ((name, arrays),) = episodes(tmp_path / "out").items()
    assert name == "uiuc_d3field3/train_eps_00000000.npz"
    assert set(arrays) == {"image_3", "action"}
    np.testing.assert_array_equal(arrays["image_3"], [frame(0, 0, step, camera=2) for step in range(NUM_STEPS)])
    assert arrays["action"].tolist() == [[4, 3, 3, 3]] * NUM_STEPS
    with pytest.raises(UserError, match=r"no camera 'image_4': .*; cameras there: image_1 \(4, 6, 3\), image_2"):
        convert(tmp_path, tmp_path / "out", "uiuc_d3field4")


PARTS = {"hand": 1, "arm/xyz": 3, "arm/ypr": 2}
TEXT = "episode_metadata/language_instruction"


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Nothing in it has a name that we expect."""
    folder = tmp_path_factory.mktemp("rlds") / "mine" / "1.2.0"
    return write_rlds(folder, {"train": [2], "val": [3]}, ["top", "wrist/rgb"], PARTS, TEXT)


def test_cameras_and_actions_by_their_keys(mine, tmp_path, capsys):
    """Bug prevented: only datasets whose camera has the name that our table says could be converted."""
    next(mine.glob("*-val.*")).rename(tmp_path / "elsewhere")
    summary = convert(mine, tmp_path / "out", "robot", image_key=("wrist/rgb", "top"), action_key="action/arm")
    (tmp_path / "elsewhere").rename(mine / "mine-val.tfrecord-00000-of-00001")
    joined = "action from action/arm/xyz (3,), action/arm/ypr (2,), joined in this order"
    text = f"language_instruction from {TEXT}"
    assert capsys.readouterr().out.splitlines() == [
        f"robot: {mine}",
        f"arrays: image from observation/wrist/rgb, top from observation/top, {joined}, {text}",
        "missing: 1 of 1 files of split val, with 3 of 3 episodes; the first: mine-val.tfrecord-00000-of-00001",
    ]
    assert (summary.written, summary.skipped) == (2, ())
    arrays = episodes(tmp_path / "out")["robot/train_eps_00000001.npz"]
    assert set(arrays) == {"image", "top", "action", "language_instruction"}
    assert arrays["language_instruction"].tolist() == ["pick block 1"] * NUM_STEPS
    for name, camera in (("image", 1), ("top", 0)):
        np.testing.assert_array_equal(arrays[name], [frame(0, 1, step, camera) for step in range(NUM_STEPS)])
    assert arrays["action"].tolist() == [[7, 7, 7, 7, 7]] * NUM_STEPS
    with pytest.raises(UserError, match=r"robot was made with other settings \(actions was .*, is \[\]"):
        convert(mine, tmp_path / "out", "robot", image_key=("wrist/rgb", "top"))


def test_what_has_to_be_chosen_is_listed(mine, tmp_path):
    with pytest.raises(UserError) as error:
        convert(mine, tmp_path)
    assert str(error.value) == (
        f"{mine}: no camera 'image': choose with --image_key; cameras there: top (4, 6, 3), wrist/rgb (4, 6, 3); "
        "actions: action/arm/xyz (3,) float32, action/arm/ypr (2,) float32, action/hand (1,) float32"
    )
    with pytest.raises(UserError, match=r"no action 'act' of numbers: choose with --action_key; .*action/hand \(1,\)"):
        convert(mine, tmp_path, image_key="top", action_key="act")
    with pytest.raises(UserError, match=r"--image_key top wrist/rgb wrist/rgb: the arrays .* clash"):
        convert(mine, tmp_path, image_key=("top", "wrist/rgb", "wrist/rgb"))
    assert not list(tmp_path.iterdir())


def test_the_real_bridge_dataset(tmp_path, capsys):
    """A partial download under another name than in the published mix, with four cameras."""
    folder = real_data("rlds") / "bridge_dataset"
    flags = {"input_path": folder, "output_path": tmp_path, "image_key": ("image_0", "image_3"), "max_num_episodes": 2}
    summary = run(converter, converter.OxeArgs, **flags, actions=True)
    assert (summary.written, summary.skipped) == (2, ())
    assert "missing: 1 of 1 files of split val, with 25 of 25 episodes" in capsys.readouterr().out
    arrays = episodes(tmp_path)["bridge_dataset/train_eps_00000001.npz"]
    assert {name: array.shape for name, array in arrays.items()} == {
        "image": (10, 64, 64, 3),
        "image_3": (10, 64, 64, 3),
        "action": (10, 7),
        "language_instruction": (10,),
    }
    assert len(set(arrays["language_instruction"])) == 1
    assert "" not in arrays["language_instruction"]


@pytest.mark.parametrize(
    ("name", "there", "version"),
    [
        ("robo_net", ["1.0.0", "0.1.0"], "1.0.0"),
        ("language_table", ["0.0.1", "0.1.0"], "0.0.1"),
        ("bridge", ["0.1.0", "1.0.0"], "0.1.0"),
        ("bridge", ["1.0.0"], "1.0.0"),
        ("mine", ["0.1.0", "10.0.0", "9.1.0"], "10.0.0"),
    ],
)
def test_versions(tmp_path, name, there, version):
    """Bug prevented: other data than the published mix, or "9" taken for newer than "10"."""
    for each in there:
        (tmp_path / name / each).mkdir(parents=True)
    wanted = (name, tmp_path / name / version)
    for given, named in ((tmp_path, name), (tmp_path / name, None), (tmp_path / name / version, None)):
        args = converter.OxeArgs(dataset_name=named, input_path=str(given), output_path="x")
        assert converter.locate(args) == wanted


def test_folders_that_are_none(source, tmp_path):
    with pytest.raises(UserError, match=r"toy/1.0.0: no such folder; versions there: 0.1.0"):
        convert(source, tmp_path, version="1.0.0")
    with pytest.raises(UserError, match=r"0.1.0: is not version 1.0.0; leave out --version"):
        convert(source / "toy" / "0.1.0", tmp_path, version="1.0.0")
    with pytest.raises(UserError, match=r"bridge: no dataset; those in .*: toy; see --input_path and --dataset_name"):
        convert(source, tmp_path, "bridge")
    (tmp_path / "toy" / "0.1.0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no dataset_info\.json there"):
        convert(tmp_path, tmp_path)
    write_rlds(tmp_path / "toy" / "0.1.0", {"train": [1]})
    (tmp_path / "toy" / "0.1.0" / "features.json").write_text("{}")
    with pytest.raises(UserError, match="cannot read this folder"):
        convert(tmp_path, tmp_path)
