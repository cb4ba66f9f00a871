"""Damaged recordings: read, or refused in one line. Anything else ends a run that was told to skip bad episodes."""

import numpy as np
import pytest

from ivideogpt.data.convert.action_files import read_actions
from ivideogpt.data.convert.hdf5 import open_hdf5, read_array
from ivideogpt.data.formats.episodes import open_episode
from ivideogpt.data.formats.npz_arrays import check_sums, npy_array
from ivideogpt.data.tokens.token_store import TokenStore
from ivideogpt.envs.messages import unpack
from ivideogpt.errors import UserError
from mbrl.replay.demonstrations import Demonstration
from tests.data.synthetic import write_episode
from tests.data.tokens import token_stores
from tests.fuzz.mutate import check_mutants


@pytest.fixture
def check(tmp_path, num_mutants):
    """Read mutants of the files in `tmp_path`: some are refused, and some are as good as before."""

    def check(read, pattern="*"):
        outcome = check_mutants(tmp_path, read, num_mutants, pattern)
        assert outcome.refused > num_mutants // 5
        assert outcome.read

    return check


def read_episode(folder):
    episode = open_episode(folder / "episode.npz")
    everything = np.arange(episode.num_frames)
    for part in (episode.read, episode.actions, episode.rewards):
        part(everything)
    check_sums(episode.path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_episodes(check, tmp_path, save):
    write_episode(tmp_path / "episode.npz", 6, save=save)
    check(read_episode)


def test_npy(check, tmp_path):
    np.save(tmp_path / "one.npy", np.arange(60.0).reshape(20, 3))
    check(lambda folder: (npy_array(str(folder / "one.npy")).all(), npy_array(str(folder / "one.npy")).mapped().sum()))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_requests_of_served_environments(check, tmp_path, save):
    save(tmp_path / "one.npz", actions=np.arange(24.0).reshape(2, 3, 4), task_descriptions=np.array(["push", "é"]))
    check(lambda folder: unpack((folder / "one.npz").read_bytes(), 10_000))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_demonstrations(check, tmp_path, save):
    rng = np.random.default_rng(0)
    save(
        tmp_path / "one.npz",
        observation=rng.integers(0, 256, (4, 9, 8, 8), dtype=np.uint8),
        action=rng.uniform(-1, 1, (4, 4)).astype(np.float32),
        reward=rng.uniform(0, 9, (4, 1)).astype(np.float32),
        discount=np.ones((4, 1), np.float32),
        seed=np.array(3),
        task=np.array("reach"),
        success_bonus=np.array(10.0),
    )
    check(lambda folder: Demonstration.from_file(folder / "one.npz"))


def test_token_stores(check, tmp_path):
    token_stores.write(tmp_path / "store")

    def read(folder):
        store = TokenStore(folder / "store")
        store.read(np.arange(len(store)))

    check(read)


@pytest.mark.parametrize("suffix", [".csv", ".npy"])
def test_action_tables(check, tmp_path, suffix):
    values = np.random.default_rng(0).normal(size=(9, 3))
    np.save(tmp_path / "one.npy", values)
    text = "\n".join(",".join(map(str, row)) for row in values.round(3))
    (tmp_path / "one.csv").write_text(f"x,y,grip\n{text}\n")
    check(lambda folder: read_actions(folder / f"one{suffix}"), pattern=f"*{suffix}")


def test_hdf5(check, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "one.hdf5", "w") as file:
        file["plain"] = np.arange(50.0).reshape(10, 5)
        file.create_dataset("group/packed", data=np.zeros((40, 8, 8), np.uint8), compression="gzip", chunks=(10, 8, 8))
        file["group"].attrs["kind"] = "mp4"

    def read(folder):
        with open_hdf5(folder / "one.hdf5") as file:
            for name in ("plain", "group/packed"):
                read_array(file, name)
            if str(file["group"].attrs["kind"]) != "mp4":
                raise UserError("another kind")

    check(read)


def test_an_endless_heap_of_strings_is_refused(tmp_path):
    """libhdf5 2.0 reads a free object of zero bytes for ever."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "one.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["kind"] = "mp4"
    content = bytearray(path.read_bytes())
    free = content.index(b"GCOL") + 16 + 16 + 8  # after the header and the only string
    assert int.from_bytes(content[free + 8 : free + 16], "little") > 1000
    content[free + 8 : free + 16] = bytes(8)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"one\.hdf5: .*heap"), open_hdf5(path):
        pass
