"""Episodes that are bad in every way seen in practice: an error names the file and the cause, or they are skipped."""

import io
import logging
import os
import re
import zipfile
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from ivideogpt.data.clips.dataset import MAX_BAD_IN_A_ROW, DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.errors import UserError
from tests.data.synthetic import numbered_frames, write_dataset, write_episode

NUM_FRAMES = 20
BAD = "00003.npz"


def arrays(**changed):
    return lambda path: write_episode(path, NUM_FRAMES, **changed)


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def damaged_inside(path):
    """What only shows when the frames are read."""
    noise = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 8, 8, 3), dtype=np.uint8)
    write_episode(path, NUM_FRAMES, save=np.savez_compressed, image=noise)
    content = bytearray(path.read_bytes())
    content[200:2000] = b"\xff" * 1800
    path.write_bytes(content)


def forged_size(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr="|u1", fortran_order=False, shape=(20_000_000, 8, 8, 3)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", header.getvalue() + bytes(100))


def linked_to_itself(path):
    path.unlink()
    path.symlink_to(path)


def replaced_by_a_folder(path):
    path.unlink()
    path.mkdir()


KINDS = {
    "truncated": (truncated, "truncated or not an npz"),
    "empty": (lambda path: path.write_bytes(b""), "truncated or not an npz"),
    "text": (lambda path: path.write_text("<html>not found</html>"), "truncated or not an npz"),
    "damaged inside": (damaged_inside, "truncated or not an npz"),
    "forged size": (forged_size, "claims 3840000000 bytes that are not there"),
    "no frames array": (arrays(image=None, front=numbered_frames(NUM_FRAMES)), "no image array 'image'"),
    "no frame": (arrays(image=numbered_frames(0)), "N at least 1"),
    "object frames": (arrays(image=numbered_frames(NUM_FRAMES).astype(object)), "pickled Python objects"),
    "float frames": (arrays(image=numbered_frames(NUM_FRAMES) / 255), "expected uint8 frames"),
    "grey frames": (arrays(image=numbered_frames(NUM_FRAMES)[..., :1]), "expected frames"),
    "frames beyond 8 bits": (arrays(image=numbered_frames(NUM_FRAMES).astype(int) + 300), "holds values from 3"),
    "no actions": (arrays(action=None), "no array 'action'"),
    "no rewards": (arrays(reward=None), "no array 'reward'"),
    "object actions": (arrays(action=np.full((NUM_FRAMES, 2), None)), "pickled Python objects"),
    "text actions": (arrays(action=np.full((NUM_FRAMES, 2), "left")), "expected numbers"),
    "flat actions": (arrays(action=np.zeros(NUM_FRAMES)), r"expected numbers of shape \(N, D\)"),
    "actions two short": (arrays(action=np.zeros((NUM_FRAMES - 2, 2))), "18 rows for 20 frames"),
    "actions beyond the end": (arrays(action=np.zeros((NUM_FRAMES + 1, 2))), "21 rows for 20 frames"),
    "other actions": (arrays(action=np.zeros((NUM_FRAMES, 3))), "3 dimensions, expected 2"),
    "NaN actions": (arrays(action=np.full((NUM_FRAMES, 2), np.nan)), "'action' holds NaN"),
    "infinite reward": (arrays(reward=np.full(NUM_FRAMES, np.inf)), "'reward' holds NaN or infinite"),
    "link to itself": (linked_to_itself, "cannot be read .*symbolic link"),
    "folder": (replaced_by_a_folder, "cannot be read .*directory"),
}


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "robot", 5, num_frames=NUM_FRAMES)


@pytest.fixture
def config(folder):
    return DataConfig(
        str(folder.parent),
        "folder:*",
        SegmentSpec(length=4),
        image_size=8,
        batch_size=4,
        load_action=True,
        load_reward=True,
        action_dim=2,
    )


def take(loader, number):
    return list(islice(loader, number))


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.pixels, other.pixels)
        assert torch.equal(batch.actions, other.actions)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_episode_is_named_or_skipped(folder, config, kind):
    damage, cause = KINDS[kind]
    damage(folder / BAD)
    with pytest.raises(UserError, match=cause) as error:
        take(build_loader(config), 10)
    assert str(folder / BAD) in str(error.value)
    assert "\n" not in str(error.value)
    loader = build_loader(replace(config, on_bad_episode="skip"))
    for batch in take(loader, 10):
        assert torch.equal(batch.pixels[:, :, 0, 0, 0].float(), batch.rewards)
        assert torch.equal(batch.actions[..., 0], batch.rewards)
    assert list(loader.bad_episodes) == [str(folder / BAD)]
    assert re.search(cause, loader.bad_episodes[str(folder / BAD)])


@pytest.mark.parametrize(
    "change",
    [
        arrays(action=np.stack([np.arange(NUM_FRAMES - 1), -np.arange(NUM_FRAMES - 1)], axis=1)),
        lambda path: write_episode(path, NUM_FRAMES, size=(12, 10)),
        lambda path: write_episode(path, NUM_FRAMES, image=numbered_frames(NUM_FRAMES).astype(np.int64)),
        lambda path: write_episode(path, 1),
        lambda path: write_episode(path, 1, action=np.zeros((0, 2))),
    ],
    ids=["actions one short", "another size", "int64", "one frame", "one frame without action"],
)
def test_unusual_episodes_are_good(folder, config, change):
    for number in range(1, 5):
        change(folder / f"{number:05d}.npz")
    write_episode(folder / "00001.npz", NUM_FRAMES)
    for batch in take(build_loader(config), 5):
        torch.testing.assert_close(batch.pixels.float().mean(dim=(2, 3, 4)), batch.rewards)
        padded = (batch.actions[..., 0] == 0) & (batch.rewards == NUM_FRAMES - 1)
        assert (padded | (batch.actions[..., 0] == batch.rewards)).all()


def test_skipping_leaves_all_other_samples_as_they_were(folder, config):
    """A stream shifted by every bad episode could not be resumed after one has been repaired."""
    config = replace(config, on_bad_episode="skip", batch_size=1)
    before = take(build_loader(config), 30)
    truncated(folder / BAD)
    after = take(build_loader(config), 30)
    replaced = [k for k, batch in enumerate(after) if batch.skipped]
    assert 2 <= len(replaced) <= 15
    assert_same(
        [batch for k, batch in enumerate(before) if k not in replaced],
        [batch for k, batch in enumerate(after) if k not in replaced],
    )


def test_replacements_do_not_depend_on_workers_ranks_or_resuming(folder, config):
    """Whichever process meets the bad episode first, sample k is the same."""
    truncated(folder / BAD)
    config = replace(config, on_bad_episode="skip")
    whole = take(build_loader(config), 6)
    assert any(batch.skipped for batch in whole)
    workers = build_loader(replace(config, num_workers=2))
    assert_same(whole, take(workers, 6))
    assert list(workers.bad_episodes) == [str(folder / BAD)], "counted here, though workers met it"
    apart = [take(build_loader(config, rank=rank, world_size=2), 3) for rank in range(2)]
    assert_same(whole, [apart[k % 2][k // 2] for k in range(6)])
    loader = build_loader(config)
    loader.load_state_dict({"samples": 3 * 4})
    assert_same(whole[3:], take(loader, 3))


def test_distinct_episodes_are_counted_and_reported_once(folder, config, caplog):
    for name in ("00002.npz", "00004.npz"):
        truncated(folder / name)
    loader = build_loader(replace(config, on_bad_episode="skip"))
    with caplog.at_level(logging.WARNING):
        take(loader, 10)
    assert sorted(map(os.path.basename, loader.bad_episodes)) == ["00002.npz", "00004.npz"]
    assert len([record for record in caplog.records if "skipping a bad episode" in record.message]) == 2


def test_a_bad_episode_is_replaced_by_one_of_its_dataset(folder, config):
    """Else datasets with bad episodes would weigh less in the mix than the user said."""
    write_dataset(folder.parent / "other", 5, num_frames=NUM_FRAMES, reward=np.full(NUM_FRAMES, -1))
    for number in (1, 2, 3):
        truncated(folder / f"0000{number}.npz")
    loader = build_loader(replace(config, on_bad_episode="skip", batch_size=200))
    share = (next(iter(loader)).rewards[:, 0] < 0).float().mean()
    assert 0.4 < share < 0.6


def test_the_first_episode_may_be_bad(folder, config):
    truncated(folder / "00001.npz")
    with pytest.raises(UserError, match=r"00001\.npz: truncated"):
        build_loader(config)
    take(build_loader(replace(config, on_bad_episode="skip")), 3)


def test_a_dataset_without_any_good_episode_ends_the_run(folder, config):
    """Skipping for ever would look like a slow disk."""
    config = replace(config, on_bad_episode="skip")
    loader = build_loader(config)
    for path in folder.iterdir():
        truncated(path)
    with pytest.raises(UserError, match=rf"{MAX_BAD_IN_A_ROW} episodes in a row are bad.*truncated"):
        take(loader, 1)
    with pytest.raises(UserError, match=r"4 episodes in a row are bad.*00001\.npz: truncated"):
        build_loader(config)
    with pytest.raises(UserError, match=r"00000\.npz: truncated"):
        build_loader(config, "test")
