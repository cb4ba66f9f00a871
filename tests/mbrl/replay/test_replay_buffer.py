"""Which rows a sample is made of: an off-by-one here trains without a complaint and learns nothing."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from ivideogpt.errors import UserError
from mbrl.replay.episodes import ReplayEpisode
from mbrl.replay.replay_buffer import EpisodeShape, Imagined, ReplayBuffer, sample_mixed
from mbrl.replay.replay_memory import USABLE, affordable_capacity, available_memory, needed_memory, warn_if_too_much
from tests.mbrl.replay.replays import SHAPE, SIZE, buffer_of, counting_episode


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def frame_numbers(pictures: torch.Tensor) -> torch.Tensor:
    """(..., 3 n, H, W) -> (..., n), of frames that are one number each."""
    frames = pictures.unflatten(-3, (-1, 3)).flatten(-3)
    assert (frames == frames[..., :1]).all()
    return frames[..., 0].long()


def test_transitions_are_aligned():
    batch = buffer_of(10).sample(400, nstep=3, discount=0.5, rng=rng())
    row = batch.reward * 0 + batch.action[:, 0]  # the action of row i is i
    assert set(row.tolist()) == set(range(1, 9))
    torch.testing.assert_close(batch.action[:, 1], -row)
    torch.testing.assert_close(batch.reward, row + 0.5 * (row + 1) + 0.25 * (row + 2))
    torch.testing.assert_close(batch.discount, torch.full((400,), 0.125))
    film = torch.tensor([250, 251, *range(11)])  # of which row 0's frame is the third
    newest = row.long() + 2
    ages = torch.tensor([-2, -1, 0])
    assert torch.equal(frame_numbers(batch.obs), film[(newest - 1)[:, None] + ages])
    assert torch.equal(frame_numbers(batch.next_obs), film[(newest + 2)[:, None] + ages])


def test_stored_discounts_end_what_comes_after():
    """Row i's discount weighs what comes after row i's reward."""
    episode = counting_episode(4)
    ending = ReplayEpisode(**{**vars(episode), "discount": np.float32([1, 1, 0, 1, 1])})
    buffer = ReplayBuffer(100, SHAPE)
    buffer.add(ending)
    batch = buffer.sample(50, nstep=2, discount=0.5, rng=rng())
    expected = {1.0: (1 + 0.5 * 2, 0.0), 2.0: (2.0, 0.0), 3.0: (3 + 0.5 * 4, 0.25)}
    seen = {a: (r, d) for a, r, d in zip(batch.action[:, 0].tolist(), batch.reward.tolist(), batch.discount.tolist())}
    assert seen == expected


def test_segments_carry_what_led_on_from_each_frame():
    segments = buffer_of(10).sample_segments(300, length=4, rng=rng())
    first = frame_numbers(segments.frames)[:, 0, 0]
    assert set(first.tolist()) == set(range(7))  # rows 0 .. L - S
    expected = first[:, None] + torch.arange(4)
    assert torch.equal(frame_numbers(segments.frames)[..., 0], expected)
    assert torch.equal(segments.actions[..., 0].long(), expected + 1)
    assert torch.equal(segments.rewards.long(), expected + 1)


def assert_uniform(counts: np.ndarray) -> None:
    expected = counts.sum() / len(counts)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = len(counts) - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


def test_episodes_are_equally_likely_and_so_are_their_rows():
    """Longer episodes are not seen more often, unlike in segments."""
    actions = buffer_of(3, 12, 7).sample(30_000, nstep=3, discount=1.0, rng=rng()).action[:, 0].long().numpy()
    assert_uniform(np.bincount(actions // 20))
    assert_uniform(np.bincount(actions)[21:31])
    assert_uniform(np.bincount(actions)[41:46])


def test_all_segments_are_equally_likely():
    buffer = buffer_of(3, 12, 4)  # none, nine and one of four frames
    firsts = frame_numbers(buffer.sample_segments(30_000, 4, rng()).frames)[:, 0, 0].numpy()
    counts = np.bincount(firsts)
    possible = [*range(20, 29), 40]
    assert np.flatnonzero(counts).tolist() == possible
    assert_uniform(counts[possible])
    assert buffer.num_segments(4, held_out=False) == 10


def test_short_episodes_are_never_sampled():
    buffer = buffer_of(1, 2, 5)
    assert buffer.sample(500, nstep=3, discount=1.0, rng=rng()).action[:, 0].min() > 40
    with pytest.raises(UserError, match="none of 3 episodes has the 6 steps"):
        buffer.sample(1, nstep=6, discount=1.0, rng=rng())
    with pytest.raises(UserError, match="none of 0 held-out episodes"):
        buffer.sample_segments(1, 2, rng(), held_out=True)
    with pytest.raises(UserError, match="none of 0 episodes"):
        ReplayBuffer(10, SHAPE).sample_starts(1, 1, rng())


def test_every_tenth_collected_episode_is_held_out_from_the_world_model_alone():
    buffer = ReplayBuffer(500, SHAPE)
    for demonstration in range(3):
        buffer.add(counting_episode(3, 200 + demonstration), demonstration=True)
    for number in range(20):
        buffer.add(counting_episode(3, 10 * number))
    held_out = frame_numbers(buffer.sample_segments(300, 3, rng(), held_out=True).frames)[:, 0, 0]
    assert set((held_out // 10).tolist()) == {9, 19}
    others = frame_numbers(buffer.sample_segments(2000, 3, rng()).frames)[:, 0, 0]
    assert set(others.tolist()) & {90, 91, 190, 191} == set()
    agents = buffer.sample(2000, 1, 1.0, rng()).action[:, 0].long()
    assert {91, 191, 201} <= set(agents.tolist())


def test_starts_are_the_observations_of_a_sample():
    buffer = buffer_of(10, 12)
    starts = buffer.sample_starts(32, nstep=3, rng=rng(5))
    assert torch.equal(starts, buffer.sample(32, 3, 0.99, rng(5)).obs)


def test_oldest_episodes_leave_first():
    """Rows of several sizes, many times the capacity: what is left is the newest."""
    shape = EpisodeShape(3, (1, 1), 1)
    buffer = ReplayBuffer(3000, shape)
    lengths = rng().integers(20, 200, size=400)
    for number, steps in enumerate(lengths.tolist()):
        zeros = np.zeros((steps + 1, 1), np.float32)
        frames = np.full((steps + 1, 3, 1, 1), number % 256, np.uint8)
        buffer.add(ReplayEpisode(frames, frames[:2], zeros + number, zeros[:, 0], zeros[:, 0] + 1))
        assert buffer.num_rows <= 3000
    held = int(np.searchsorted(np.cumsum(lengths[::-1]), 3000, side="right"))
    assert (buffer.num_episodes, buffer.num_rows) == (held, lengths[-held:].sum())
    batch = buffer.sample(5000, 3, 1.0, rng())
    assert set(batch.action[:, 0].long().tolist()) == set(range(400 - held, 400))
    assert torch.equal(batch.obs[:, 0, 0, 0], (batch.action[:, 0] % 256).to(torch.uint8))
    assert torch.equal(batch.next_obs[:, 8, 0, 0], batch.obs[:, 0, 0, 0])


def test_a_batch_equals_the_episodes_themselves():
    buffer = buffer_of(*[10] * 10)
    stacks = {
        first + row: torch.from_numpy(counting_episode(10, first).stacks()[row])
        for first in range(0, 200, 20) for row in range(11)
    }  # fmt: skip
    batch = buffer.sample(100, 3, 0.99, rng())
    for row, obs, next_obs in zip(batch.action[:, 0].long().tolist(), batch.obs, batch.next_obs):
        assert torch.equal(obs, stacks[row - 1])
        assert torch.equal(next_obs, stacks[row + 2])


def test_imagined_episodes_are_added_at_once():
    episodes = [counting_episode(5, first) for first in (0, 100)]
    names = ("frames", "earlier", "action", "reward")
    parts = {name: torch.from_numpy(np.stack([vars(e)[name] for e in episodes])) for name in names}
    together = ReplayBuffer(100, SHAPE)
    together.add_imagined(Imagined(**parts))
    assert (together.num_episodes, together.num_rows, together.num_collected) == (2, 10, 0)
    one_by_one = ReplayBuffer(100, SHAPE)
    for episode in episodes:
        one_by_one.add(episode)
    assert torch.equal(together.sample(50, 3, 1.0, rng()).obs, one_by_one.sample(50, 3, 1.0, rng()).obs)


@pytest.mark.parametrize(("real_ratio", "num_real"), [(0.5, 8), (1.0, 16), (0.0, 0)])
def test_mixed_batches(real_ratio, num_real):
    real, imagined = buffer_of(10), ReplayBuffer(100, SHAPE)
    assert (sample_mixed(real, imagined, real_ratio, 16, 3, 0.99, rng()).action[:, 0] < 20).all()
    imagined.add(counting_episode(10, 100))
    batch = sample_mixed(real, imagined, real_ratio, 16, 3, 0.99, rng())
    assert ((batch.action[:, 0] < 20).tolist()) == [True] * num_real + [False] * (16 - num_real)
    assert torch.equal(frame_numbers(batch.next_obs)[:, 2], batch.action[:, 0].long() + 2)


def test_unfitting_episodes_are_refused():
    buffer = ReplayBuffer(20, SHAPE)
    with pytest.raises(UserError, match="raise replay_buffer_size"):
        buffer.add(counting_episode(21))
    wide = ReplayBuffer(20, EpisodeShape(3, (SIZE[0], 2 * SIZE[1]), 2))
    with pytest.raises(UserError, match=r"4x6 pixels and 2 action numbers, this run has .* 4x12 pixels"):
        wide.add(counting_episode(5))
    assert (buffer.num_episodes, wide.num_episodes) == (0, 0)


META_WORLD = EpisodeShape(3, (64, 64), 4)


def test_stated_memory_is_that_of_frames_held_once():
    """A third of what stacks would take, and a fifth more than the bare frames where episodes are short."""
    frames = 1_000_000 * 3 * 64 * 64
    assert 1.02 < needed_memory(1_000_000, META_WORLD, [100]) / frames < 1.08
    assert 1.28 < needed_memory(1_000_000, META_WORLD, [10]) / frames < 1.36


def test_capacity_is_lowered_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert affordable_capacity(1_000_000, META_WORLD, (100, 10), available=64 * 2**30) == 1_000_000
        assert not caplog.records
        lowered = affordable_capacity(1_000_000, META_WORLD, (100, 10), available=8 * 2**30)
    assert len(caplog.records) == 1
    assert f"lowered to {lowered}" in caplog.text
    needed = needed_memory(lowered, META_WORLD, [100, 10])
    assert 0.8 * USABLE * 8 * 2**30 < needed <= USABLE * 8 * 2**30
    with pytest.raises(UserError, match="too little for 2 replay buffers"):
        affordable_capacity(1_000_000, META_WORLD, (100, 10), available=2**20)


def test_a_settled_capacity_that_may_not_fit_is_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        warn_if_too_much(1_000_000, META_WORLD, (100, 10), available=64 * 2**30)
        assert not caplog.records
        warn_if_too_much(1_000_000, META_WORLD, (100, 10), available=8 * 2**30)
    assert [record.message.count("\n") for record in caplog.records] == [0]
    assert "8.0 GiB are available, which may be too little" in caplog.text


def test_the_least_limit_of_the_groups_around_counts(tmp_path):
    """Bug prevented: a batch system limits a job three folders below the root, and the job is killed."""
    (tmp_path / "meminfo").write_text("MemAvailable:  500 kB\n")
    (tmp_path / "own").write_text("0::/slurm/job_7/step\n")
    files = (tmp_path / "meminfo", tmp_path / "groups", tmp_path / "own")
    assert available_memory(*files) == 500 * 1024  # a path of the host's
    for name, limit in (("slurm", "400000"), ("slurm/job_7", "300000"), ("slurm/job_7/step", "max")):
        folder = tmp_path / "groups" / name
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.stat").write_text("anon 100000\nfile 7\n")
    assert available_memory(*files) == 200_000
    (tmp_path / "groups" / "slurm" / "memory.max").write_text("250000\n")
    assert available_memory(*files) == 150_000


def test_the_limit_of_a_group_of_version_1(tmp_path):
    (tmp_path / "meminfo").write_text("MemAvailable:  500 kB\n")
    (tmp_path / "own").write_text("3:cpu,cpuacct:/job\n2:memory:/job\n1:name=systemd:/job\n0::/job\n")
    for name, limit in (("memory", 2**63 - 4096), ("memory/job", 300_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (tmp_path / name / "memory.stat").write_text("rss 5\ntotal_rss 100000\n")
    assert available_memory(tmp_path / "meminfo", tmp_path, tmp_path / "own") == 200_000


def test_available_memory_is_the_container_s_if_that_is_less(tmp_path):
    (tmp_path / "own").write_text("0::/\n")
    files = (tmp_path / "meminfo", tmp_path, tmp_path / "own")
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  500 kB\n")
    assert available_memory(*files) == 500 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.stat").write_text("anon 100000\nfile 7\n")
    assert available_memory(*files) == 500 * 1024
    (tmp_path / "memory.max").write_text("300000\n")
    assert available_memory(*files) == 200_000
    assert available_memory() > 0
