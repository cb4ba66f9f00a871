"""Lance tables beside the npz files that they were made of, on a disk and in an object store."""

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lance", reason="pylance (85 MB) is not among the pinned packages: pip install -e '.[lance]'")

import lance
import pyarrow as pa

from ivideogpt.data import __main__ as commands
from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import Augmentation
from ivideogpt.data.convert import lance_writer
from ivideogpt.data.formats.episodes import open_episode
from ivideogpt.data.formats.lance_tables import EPISODES, FRAMES, LanceEpisodes, open_table
from ivideogpt.data.formats.registry import find_episodes
from ivideogpt.errors import UserError
from ivideogpt.flags import parse
from ivideogpt.runs.resume import digest_of
from tests.data.formats.object_store import object_store
from tests.data.synthetic import write_episode
from tests.datasets.scripts import load_script

repack = load_script("repack")
NUM_EPISODES = 9


def write_npz(folder: Path, numbers=range(NUM_EPISODES), size=(8, 10)) -> Path:
    """Episodes of noise and of several lengths, the last row of actions missing as recorders leave it."""
    for number in numbers:
        rng, length = np.random.default_rng(number), 12 + number
        image = rng.integers(0, 256, (length, *size, 3), dtype=np.uint8)
        actions = rng.normal(size=(length - 1, 3))
        write_episode(
            folder / f"{number:05d}.npz", length, image=image, action=actions, success=rng.random(length) > 0.5
        )
    return folder


def append(source, output, *flags):
    argv = [
        "--format",
        "lance",
        "--input_path",
        str(source),
        "--output_path",
        str(output),
        "--num_workers",
        "1",
        *flags,
    ]
    return repack.run(parse(repack.RepackArgs, argv))


def test_the_first_episodes_of_every_folder(tmp_path):
    """Bug prevented: a number of episodes that holds for the first data set alone."""
    for robot in ("a", "b"):
        write_npz(tmp_path / "npz" / robot)
    assert append(tmp_path / "npz", tmp_path / "lance", "--max_num_episodes", "2").written == 4
    for robot in ("a", "b"):
        assert len(find_episodes(f"lance:{tmp_path}/lance/{robot}")[0].episodes) == 2


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder of npz/robot, and lance/robot made of it."""
    folder = tmp_path_factory.mktemp("lance")
    write_npz(folder / "npz" / "robot")
    assert append(folder / "npz", folder / "lance").written == NUM_EPISODES
    return folder


@pytest.fixture
def copied(recorded, tmp_path):
    """The data set, to be damaged."""
    return Path(shutil.copytree(recorded / "lance" / "robot", tmp_path / "robot"))


def loader(path, **options):
    config = DataConfig(
        str(path), "folder:robot", SegmentSpec(length=4), video_stepsize=6, image_size=8, batch_size=3,
        load_action=True, load_reward=True, load_success=True, augmentation=Augmentation(), **options,
    )  # fmt: skip
    return build_loader(config)


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for name in ("frames", "actions", "rewards", "successes"):
            assert torch.equal(getattr(batch, name), getattr(other, name))


def take(stream, number):
    return [batch.to("cpu") for batch in islice(stream, number)]


def assert_same_episodes(uri, folder):
    episodes, files = LanceEpisodes.open_uri(str(uri)), sorted(folder.glob("*.npz"))
    assert [episodes.name(index) for index in range(len(episodes))] == [f"{uri}#{file.name}" for file in files]
    for index, file in enumerate(files):
        ours, theirs = episodes.open(index), open_episode(file)
        everything = np.arange(theirs.num_frames)
        assert ours.num_frames == theirs.num_frames
        for frames in (everything, np.array([3, 3, 0, 11])):
            np.testing.assert_array_equal(ours.read(frames), theirs.read(frames))
            np.testing.assert_array_equal(ours.actions(frames), theirs.actions(frames))
            np.testing.assert_array_equal(ours.rewards(frames), theirs.rewards(frames))
            np.testing.assert_array_equal(ours.successes(frames), theirs.successes(frames))
        ours.verify()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_stream_is_that_of_the_npz_folder(recorded, num_workers):
    """Another order, or a resumed run that sees clips again, changes a training that nothing else has changed."""
    files, tables = loader(recorded / "npz"), loader(f"lance:{recorded / 'lance' / 'robot'}", num_workers=num_workers)
    assert_same(take(files, 3), take(tables, 3))
    resumed = loader(f"lance:{recorded / 'lance' / 'robot'}")
    resumed.load_state_dict(tables.state_dict())
    assert_same(take(files, 3), take(resumed, 3))


def test_data_commands(recorded, capsys, monkeypatch):
    """A format that a command takes for a folder of npz files is not found there."""
    path = f"lance:{recorded / 'lance' / 'robot'}/"
    monkeypatch.setattr("sys.argv", ["data", "validate", path])
    commands.main()
    assert f"robot: {NUM_EPISODES} episodes, 144 frames read, 0 bad" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["data", "inspect", path, "--json"])
    commands.main()
    (report,) = json.loads(capsys.readouterr().out)
    assert [array["name"] for array in report["arrays"]] == ["image", "action", "reward", "success"]
    assert report["unreadable"] == []


def test_later_episodes_are_appended_in_their_place(tmp_path):
    """Episodes by the order of writing: a split, and every number of an episode, would depend on who wrote first."""
    folder = write_npz(tmp_path / "npz", range(4, 9))
    assert append(folder, tmp_path / "robot").written == 5
    digest = digest_of(f"lance:{tmp_path / 'robot'}", with_contents=False)
    reader = LanceEpisodes.open_uri(str(tmp_path / "robot"))
    summary = append(write_npz(folder, range(4)), tmp_path / "robot", "--on_bad_episode", "error")
    assert (summary.written, summary.existing) == (4, 5)
    assert_same_episodes(tmp_path / "robot", folder)
    assert digest_of(f"lance:{tmp_path / 'robot'}", with_contents=False) != digest  # no copy of what it was
    assert len(reader) == 5
    reader.open(4).verify()
    assert len(open_table(f"{tmp_path / 'robot'}/{EPISODES}").get_fragments()) == 1  # opened in one piece


def test_the_checksum_is_that_of_frames_and_numbers(tmp_path):
    """A token store went on with actions that had been written again, as only frames were compared."""
    folder, changed = write_npz(tmp_path / "npz", [3]), ("action", "reward", "success", "image")
    with np.load(folder / "00003.npz") as file:
        arrays = dict(file)
    found = []
    for name in (None, *changed):
        other = (
            {}
            if name is None
            else {
                name: np.concatenate(
                    [~arrays[name][:1] if name == "success" else arrays[name][:1] + 1, arrays[name][1:]]
                )
            }
        )
        write_episode(tmp_path / str(name) / "00003.npz", **arrays | other)
        append(tmp_path / str(name), tmp_path / "tables" / str(name))
        found.append(LanceEpisodes.open_uri(str(tmp_path / "tables" / str(name))).open(0).content_checksum())
    assert len(set(found)) == len(found)
    assert append(folder, tmp_path / "tables" / "again").written == 1
    assert LanceEpisodes.open_uri(str(tmp_path / "tables" / "again")).open(0).content_checksum() == found[0]


def test_an_interruption_leaves_whole_episodes(tmp_path, monkeypatch):
    """Rows without an entry of their episode are nobody's; entries without rows would be read as another's."""
    folder = write_npz(tmp_path / "npz")
    write, calls = lance.write_dataset, []

    def dies_at_the_second_entry(data, uri, **options):
        calls.append(uri)
        if len(calls) == 4:  # two tables, then an entry for each commit
            raise KeyboardInterrupt
        return write(data, uri, **options)

    with monkeypatch.context() as patch:
        patch.setattr(lance, "write_dataset", dies_at_the_second_entry)
        with pytest.raises(KeyboardInterrupt):
            append(folder, tmp_path / "robot")
    (dataset,) = find_episodes(f"lance:{tmp_path / 'robot'}")
    assert len(dataset.episodes) == 3
    assert open_table(f"{tmp_path / 'robot'}/{FRAMES}").count_rows() > sum(dataset.episodes.lengths)
    for index in range(3):
        dataset.episodes.open(index).verify()
    assert append(folder, tmp_path / "robot").existing == 3
    assert_same_episodes(tmp_path / "robot", folder)


def test_commands_that_append_at_the_same_time(tmp_path, monkeypatch):
    """The first row of an episode is known when its rows are committed, not when they are written."""
    folder = write_npz(tmp_path / "npz")
    commit = lance_writer._commit

    def after_another(uri, written):
        monkeypatch.setattr(lance_writer, "_commit", commit)
        append(folder, tmp_path / "robot")
        commit(uri, written)

    monkeypatch.setattr(lance_writer, "_commit", after_another)
    append(folder, tmp_path / "robot")
    assert open_table(f"{tmp_path / 'robot'}/{EPISODES}").count_rows() > NUM_EPISODES
    assert_same_episodes(tmp_path / "robot", folder)


def test_shards_append_their_own_episodes(tmp_path):
    """Every command of a job array wrote all of them, so that the frames were there once a job."""
    folder = write_npz(tmp_path / "npz")
    parts = [append(folder, tmp_path / "robot", "--shard", f"{index}/2") for index in range(2)]
    assert [part.written for part in parts] == [-(-NUM_EPISODES // 2), NUM_EPISODES // 2]
    assert open_table(f"{tmp_path / 'robot'}/{EPISODES}").count_rows() == NUM_EPISODES
    assert_same_episodes(tmp_path / "robot", folder)


def test_in_an_object_store(recorded, monkeypatch):
    """Paths with ``://`` are no folders: every place that treats them so fails where the data is too large to copy."""
    with object_store() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        summary = append(recorded / "npz", "s3://bucket/oxe", "--max_num_episodes", "5")
        assert summary.written == 5
        assert append(recorded / "npz", "s3://bucket/oxe").existing == 5
        assert_same_episodes("s3://bucket/oxe/robot", recorded / "npz" / "robot")
        assert_same(take(loader(recorded / "npz"), 2), take(loader("lance:s3://bucket/oxe/robot"), 2))
        episode = LanceEpisodes.open_uri("s3://bucket/oxe/robot").open(3)
        episode.read(np.arange(2))
        store.requests.clear()
        episode.read(np.array([2, 4, 6]))
        episode.actions(np.array([2, 4, 6]))
        columns = 6  # episode, frame, image, action, reward, success
        assert 0 < len(store.requests) <= columns
        with pytest.raises(UserError, match=r"^s3://bucket/none/episodes.lance: missing or damaged"):
            find_episodes("lance:s3://bucket/none")


def test_frames_and_arrays_of_another_kind_are_refused(tmp_path):
    """One column of another size would make every later row unreadable, or stretch the frames unnoticed."""
    write_npz(tmp_path / "npz")
    append(tmp_path / "npz", tmp_path / "robot", "--max_num_episodes", "2")
    write_npz(tmp_path / "npz", [3], size=(6, 6))
    write_episode(tmp_path / "npz" / "00004.npz", size=(8, 10))
    (tmp_path / "npz" / "00005.npz").write_bytes(b"PK torn")
    summary = append(tmp_path / "npz", tmp_path / "robot")
    assert (summary.written, len(summary.skipped)) == (NUM_EPISODES - 5, 3)
    assert "holds frames 6x6, action of 3, reward of 1, success of 1; expected frames 8x10, action of 3" in str(summary)
    assert "00004.npz: holds frames 8x10, action of 2, reward of 1; expected" in str(summary)
    assert "00005.npz: truncated or not an npz file" in str(summary)
    for flags in (["--resize", "4"], ["--square_crop"]):
        with pytest.raises(UserError, match=r"robot holds frames 8x10, .*choose another --output_path"):
            append(tmp_path / "npz", tmp_path / "robot", *flags)
    with pytest.raises(UserError, match=r"--verify is for npz files; check tables with python -m ivideogpt.data"):
        append(tmp_path / "npz", tmp_path / "robot", "--verify")
    with pytest.raises(UserError, match=r"is inside --input_path"):
        append(tmp_path / "npz", tmp_path / "npz" / "lance")


def rewritten(uri: Path, change) -> None:
    table = lance.dataset(str(uri)).to_table()
    shutil.rmtree(uri)
    lance.write_dataset(change(table), str(uri))


DAMAGES = {
    "no such data set": (lambda folder: shutil.rmtree(folder), r"episodes.lance: missing or damaged \(Dataset at path"),
    "a foreign table": (
        lambda folder: rewritten(folder / FRAMES, lambda table: pa.table({"text": ["a"]})),
        r"frames.lance: a Lance table of other columns \(text\); expected one that datasets/repack.py",
    ),
    "foreign episodes": (
        lambda folder: rewritten(folder / EPISODES, lambda table: table.drop_columns("checksum")),
        r"episodes.lance: columns name string, start int64, length int32; expected name string, .*checksum",
    ),
    "a missing column": (
        lambda folder: rewritten(folder / FRAMES, lambda table: table.drop_columns("action")),
        r"frames.lance: no column 'action' among episode, frame, image, reward, success; expected episode, .*write it",
    ),
    "a newer format": (
        lambda folder: rewritten(
            folder / FRAMES, lambda table: table.replace_schema_metadata({"ivideogpt": '{"format": 9}'})
        ),
        r"frames.lance: its note .* is not understood \(format of another version than 1\)",
    ),
    "a truncated episode": (
        lambda folder: rewritten(folder / FRAMES, lambda table: table.slice(0, len(table) - 2)),
        r"robot#00008.npz: episodes.lance gives it 20 rows from 124 on, and frames.lance has 142",
    ),
    "rows of others": (
        lambda folder: rewritten(folder / FRAMES, lambda table: pa.concat_tables([table.slice(1), table.slice(0, 1)])),
        r"robot#00008.npz: rows from 124 on are of another episode or frame than episodes.lance says",
    ),
    "no episodes": (
        lambda folder: rewritten(folder / EPISODES, lambda table: table.slice(0, 0)),
        r"robot: no episodes; append some",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_ours_or_damaged_is_named(copied, damage):
    change, message = DAMAGES[damage]
    change(copied)
    with pytest.raises(UserError, match=message) as error:
        find_episodes(f"lance:{copied}")[0].episodes.open(NUM_EPISODES - 1).read(np.arange(3))
    assert "\n" not in str(error.value)


def test_flipped_bits_and_torn_files_are_found(copied):
    """Lance keeps no checksums: a changed pixel is read as it is."""
    episodes = LanceEpisodes.open_uri(str(copied))
    for file in (copied / FRAMES / "data").iterdir():
        content = bytearray(file.read_bytes())
        content[500] ^= 1  # in the pixels, which come first
        file.write_bytes(content)
    causes = set()
    for index in range(len(episodes)):
        try:
            episodes.open(index).verify()
        except UserError as error:
            causes.add(str(error).partition(": ")[2][:50])
    assert causes == {"its frames are not those that were written; write "}
    for file in (copied / FRAMES / "data").iterdir():
        file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(UserError, match=r"frames.lance: missing or damaged"):
        LanceEpisodes.open_uri(str(Path(shutil.copytree(copied, copied.with_name("torn"))))).open(0).read(np.arange(3))


def test_two_data_sets_of_one_name():
    """Weights and splits go by the name."""
    for path in ("lance:a/robot,b/robot", "lance:"):
        with pytest.raises(UserError, match=r"lance:<uri>\[,<uri>...\] with different last parts"):
            find_episodes(path)


def test_commas_in_the_name_of_a_folder(recorded, tmp_path):
    """Lists are split at commas as they are everywhere: not within the name of what exists."""
    first, second = tmp_path / "left,right", tmp_path / "other"
    for folder in (first, second):
        shutil.copytree(recorded / "lance" / "robot", folder)
    assert [dataset.name for dataset in find_episodes(f"lance:{first},{second}")] == ["left,right", "other"]
