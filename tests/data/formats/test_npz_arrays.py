"""Arrays inside npz files: the same values as numpy's, from damaged files an error and nothing else."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ivideogpt.data.formats import npz_arrays
from ivideogpt.data.formats.episodes import NpzEpisodes, open_episode
from ivideogpt.data.formats.npz_arrays import InflatedArrays, check_sums, npy_array, npz_members
from ivideogpt.errors import UserError
from tests.data.synthetic import numbered_frames, write_dataset, write_episode

NOISE = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
ROW = 8 * 8 * 3
quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_compressed(path, **arrays):
    return write_episode(path, 20, save=np.savez_compressed, **({"image": NOISE} | arrays))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "episode.npz"


@pytest.fixture
def inflated(monkeypatch):
    """How many bytes have been inflated so far, in a list that the test may clear."""
    sizes = []
    read = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: sizes.append(n) or read(self, n))
    return sizes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The same frames in every layout that numpy saves."""
    folder = tmp_path_factory.mktemp("layouts")
    for number, (save, layout) in enumerate(
        product([np.savez, np.savez_compressed], [np.ascontiguousarray, np.asfortranarray])
    ):
        write_episode(folder / f"{number}.npz", 20, save=save, image=layout(NOISE))
    return folder


@quick
@given(
    st.integers(0, 3),
    st.sampled_from([0, 3 * ROW, 15 * ROW, 1 << 20]),
    st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=6), min_size=1, max_size=5),
)
def test_rows_are_numpys_whatever_is_kept(saved, number, max_bytes, windows):
    """Reading at the wrong place, or from what was kept of fewer rows, gives plausible pictures of other frames."""
    arrays = InflatedArrays(max_bytes)
    for window in windows:
        member = npz_members(str(saved / f"{number}.npz"))["image"]
        rows = arrays.rows(member, np.array(window))
        np.testing.assert_array_equal(rows, NOISE[window])
        rows[:] = 0  # the caller's own
        assert arrays.num_bytes <= max_bytes


def test_compressed_rows_are_inflated_no_further_than_needed(path, inflated):
    episode = open_episode(write_compressed(path))
    inflated.clear()
    episode.read(np.array([1, 4]))
    assert sum(inflated) < 6 * ROW + 512


def test_windows_of_one_episode_inflate_it_once(path, inflated):
    """Every window inflating all frames before it makes a sweep over an episode quadratic in its length."""
    episode = open_episode(write_compressed(path), arrays=InflatedArrays(1 << 20))
    inflated.clear()
    episode.read(np.arange(5))
    episode.read(np.arange(3))
    assert sum(inflated) < 6 * ROW + 512, "no more than the first window"
    for start in range(16):
        np.testing.assert_array_equal(episode.read(np.arange(start, start + 4)), NOISE[start : start + 4])
    assert sum(inflated) < 26 * ROW + 512, "and once all of it, when a second one went further"


def test_the_least_recently_used_arrays_are_dropped(tmp_path, inflated):
    folder = write_dataset(tmp_path, 3, save=np.savez_compressed, image=NOISE)
    files = sorted(str(file) for file in folder.iterdir())
    episodes = NpzEpisodes(files, arrays=InflatedArrays(45 * ROW))
    for index in (0, 1, 0, 2):
        episodes.open(index).read(np.arange(20))
    assert episodes.arrays.num_bytes == 40 * ROW
    inflated.clear()
    episodes.open(0).read(np.arange(20))
    assert not inflated
    episodes.open(1).read(np.arange(20))
    assert inflated


def test_a_changed_file_is_inflated_anew(path):
    arrays = InflatedArrays(1 << 20)
    open_episode(write_compressed(path), arrays=arrays).read(np.arange(20))
    write_compressed(path, image=numbered_frames(20))
    np.testing.assert_array_equal(open_episode(path, arrays=arrays).read(np.arange(20)), numbered_frames(20))


def test_what_is_kept_is_not_sent_to_workers(path):
    arrays = InflatedArrays(1 << 20)
    open_episode(write_compressed(path), arrays=arrays).read(np.arange(20))
    content = pickle.dumps(arrays)
    assert len(content) < 200
    assert (pickle.loads(content).max_bytes, pickle.loads(content).num_bytes) == (1 << 20, 0)  # noqa: S301


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_and_open_files_stay_flat(tmp_path, save):
    """A window that kept its map, or a cache without end, would end a run after days."""
    folder = write_dataset(tmp_path, 5, save=save, image=NOISE)
    episodes = NpzEpisodes(sorted(str(file) for file in folder.iterdir()), arrays=InflatedArrays(50 * ROW))
    rng = np.random.default_rng(0)

    def read(times):
        for _ in range(times):
            episodes.open(int(rng.integers(5))).read(rng.integers(0, 20, 4))

    read(50)
    tracemalloc.start()
    files, (before, _) = len(os.listdir("/dev/fd")), tracemalloc.get_traced_memory()
    read(300)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(os.listdir("/dev/fd")) == files
    assert after - before < 60 * ROW


# ---- files that are not what they claim


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return [
        write_episode(folder / f"{save.__name__}.npz", 4, save=save, image=NOISE[:4]).read_bytes()
        for save in (np.savez, np.savez_compressed)
    ]


@settings(quick, max_examples=150)
@given(st.integers(0, 1), st.data())
def test_damage_raises_nothing_but_an_error_that_names_the_file(tmp_path, whole, which, data):
    """Any other exception would end a run that was told to skip bad episodes, or bury it in a worker's traceback."""
    content = bytearray(whole[which])
    for _ in range(data.draw(st.integers(1, 4))):
        # half of the damage where it hurts: in the headers at both ends
        place = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(0, 200)))
        place = data.draw(st.sampled_from([place, len(content) - 1 - place]))
        content[place] = data.draw(st.sampled_from([0, 1, 0x28, 0x7F, 0x80, 0xFF]))
    file = tmp_path / "damaged.npz"
    file.write_bytes(content[: data.draw(st.sampled_from([None, len(content) // 2]))])
    os.utime(file, ns=(0, data.draw(st.integers(0, 2**60))))
    error = error_in(file)
    assert error is None or (str(file) in error and "\n" not in error)


def error_in(file) -> str | None:
    try:
        episode = open_episode(file)
        episode.read(np.array([0, episode.num_frames - 1]))
        episode.actions(np.array([0]))
        episode.rewards(np.array([0]))
    except UserError as error:
        return str(error)
    return None


def npz_with(path, content: bytes, method=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("image.npy", content)


def npy_header(shape) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr="|u1", fortran_order=False, shape=shape))
    return header.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sizes_that_are_not_there_are_refused(path, method):
    """Mapping or allocating what a forged header claims would take the process down."""
    npz_with(path, npy_header((10**9, 64, 64, 3)) + b"few", method)
    with pytest.raises(UserError, match="claims 12288000000000 bytes"):
        open_episode(path)


def test_sizes_forged_in_the_directory_too_are_refused(path):
    npz_with(path, npy_header((10**5, 100, 100, 3)) + bytes(1000), zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"PK\1\2") + 24, len(npy_header((1,))) + 10**5 * 30000)
    path.write_bytes(content)
    with pytest.raises(UserError, match="claims 3000000000 bytes"):
        open_episode(path)


def test_bombs_are_refused(path, monkeypatch):
    """A few megabytes of zeros, deflated, can hold more than the machine's memory."""
    monkeypatch.setattr(npz_arrays, "_BOMB_BYTES", 1 << 20)
    write_compressed(path, image=np.zeros((400, 32, 32, 3), np.uint8), action=None, reward=None)
    with pytest.raises(UserError, match=r"array 'image' would grow from \d+ to 1228800 bytes"):
        open_episode(path)


def test_black_recordings_are_no_bombs(path):
    assert open_episode(write_compressed(path, image=np.zeros((400, 32, 32, 3), np.uint8))).num_frames == 400


def test_pickles_are_never_loaded(path):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    npz_with(path, pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="no readable header"):
        open_episode(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_numpy_never_writes_is_refused(path, method):
    npz_with(path, npy_header((1, 8, 8, 3)) + bytes(ROW), method)
    with pytest.raises(UserError, match="compressed by method"):
        open_episode(path)


def test_links_that_end_nowhere_are_named(tmp_path):
    loop = tmp_path / "loop.npz"
    loop.symlink_to(loop)
    (tmp_path / "folder.npz").mkdir()
    for name, reason in [("loop", "symbolic link"), ("folder", "directory"), ("absent", "no such file")]:
        with pytest.raises(UserError, match=rf"{name}\.npz: cannot be read \(.*{reason}"):
            open_episode(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_that_shrinks_after_it_was_opened_is_refused(path, save):
    episode = open_episode(write_episode(path, 20, save=save, image=NOISE))
    for length in (100, 0):
        os.truncate(path, length)
        with pytest.raises(UserError, match="truncated or not an npz"):
            episode.read(np.arange(3))
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        episode.read(np.arange(3))


def npy_file(path, shape, descr="<f4", content=b""):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr=descr, fortran_order=False, shape=shape))
    path.write_bytes(header.getvalue() + content)
    return str(path)


@pytest.mark.parametrize("shape", [(0, 10**12), (10**12, 0), (0, 10**6, 10**6)])
def test_arrays_without_values_claim_no_giant_rows(tmp_path, shape):
    """Bug prevented: an action array without rows that takes 4 TB once the missing last row is added."""
    with pytest.raises(UserError, match="holds nothing"):
        npy_array(npy_file(tmp_path / "a.npy", shape))
    episode = write_episode(tmp_path / "a.npz", 1, action=None)
    with zipfile.ZipFile(episode, "a") as archive:
        archive.writestr("action.npy", (tmp_path / "a.npy").read_bytes())
    with pytest.raises(UserError, match=r"a\.npz: .*'action' of shape .* holds nothing"):
        open_episode(episode).actions(np.array([0]))


def test_npy_files(tmp_path):
    for values in (
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(3),
        np.ones((0, 4)),
    ):
        np.save(tmp_path / "a.npy", values)
        for read in (npy_array(str(tmp_path / "a.npy")).all(), npy_array(str(tmp_path / "a.npy")).mapped()):
            np.testing.assert_array_equal(read, values)
            assert read.dtype == values.dtype
    np.save(tmp_path / "a.npy", np.array([{}], object))
    with pytest.raises(UserError, match=r"a\.npy: the array holds pickled Python objects"):
        npy_array(str(tmp_path / "a.npy"))
    with pytest.raises(UserError, match=r"a\.npy: truncated or not an npy file .*claims 4000000000000 bytes"):
        npy_array(npy_file(tmp_path / "a.npy", (10**12,)))


def test_whole_arrays_fit_their_checksums(path):
    """Bug prevented: demonstrations with flipped bits; numpy compares the sums, a memory map does not."""
    write_episode(path, 20, image=NOISE)
    content = bytearray(path.read_bytes())
    content[content.index(NOISE.tobytes()[:100])] ^= 1
    path.write_bytes(content)
    for read in (npz_members(str(path))["image"].all, lambda: check_sums(str(path))):
        with pytest.raises(UserError, match="Bad CRC-32"):
            read()


def test_arrays_are_parsed_when_they_are_asked_for(path):
    write_episode(path, 20)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("log.npy", b"\x93NUMPY\x03\x00")
    members = npz_members(str(path))
    assert (list(members), list(members.readable())) == (
        ["image", "action", "reward", "log"],
        ["image", "action", "reward"],
    )
    with pytest.raises(UserError, match="array 'log' has no readable header"):
        members["log"]
