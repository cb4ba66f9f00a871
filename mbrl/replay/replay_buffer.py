"""Replay buffer of real or imagined episodes: every frame is stored once, and frames are stacked on sampling.

Knows episodes and random numbers; knows no environment, no agent and no files.

Shapes: B batch, S frames of a segment, L agent steps, K frames in a stack, H W pixels, D action dimension.
Row 0 of an episode is its start; row i in 1 .. L holds the action that led to its frame, and its reward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.errors import UserError
from mbrl.replay.episodes import FRAME_CHANNELS, ReplayEpisode

HELD_OUT_EVERY = 10  # the last of every ten collected episodes is excluded from the world model's training


@dataclass(frozen=True)
class Transitions:
    """Transitions over n rows each."""

    obs: Tensor  # (B, 3 K, H, W) uint8, oldest frame first
    action: Tensor  # (B, D) taken at ``obs``, float32 in [-1, 1]
    reward: Tensor  # (B,) float32, discounted sum over the n rows
    discount: Tensor  # (B,) float32, factor of the value of ``next_obs`` at ``obs``
    next_obs: Tensor  # (B, 3 K, H, W) uint8, oldest frame first

    def __len__(self) -> int:
        return len(self.obs)

    def __getitem__(self, rows: slice) -> Transitions:
        return Transitions(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device) -> Transitions:
        return Transitions(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


@dataclass(frozen=True)
class Segments:
    """Contiguous segments of episodes."""

    frames: Tensor  # (B, S, 3, H, W) uint8
    actions: Tensor  # (B, S, D); actions[:, j] was taken at frames[:, j]
    rewards: Tensor  # (B, S), rewards of these actions


@dataclass(frozen=True)
class Imagined:
    """Imagined episodes of L + 1 rows; row 0 is the start, with a zero action and no reward."""

    frames: Tensor  # (B, L + 1, 3, H, W) uint8
    earlier: Tensor  # (B, K - 1, 3, H, W) uint8, the older frames of the start
    action: Tensor  # (B, L + 1, D)
    reward: Tensor  # (B, L + 1) in the environment's units


@dataclass(frozen=True)
class EpisodeShape:
    """Shapes and types that all episodes of a buffer share."""

    frame_stack: int
    image_size: tuple[int, int]
    action_dim: int

    @property
    def frame(self) -> tuple[int, int, int]:
        return (FRAME_CHANNELS, *self.image_size)

    @classmethod
    def of(cls, episode: ReplayEpisode) -> EpisodeShape:
        height, width = episode.frames.shape[2:]
        return cls(len(episode.earlier) + 1, (height, width), episode.action.shape[1])

    def __str__(self) -> str:
        height, width = self.image_size
        return f"stacks of {self.frame_stack} frames of {height}x{width} pixels and {self.action_dim} action numbers"


@dataclass(frozen=True)
class HeldEpisode:
    """A stored episode in two arrays, each read in one operation; `episode` holds views of them."""

    all_frames: NDArray[np.uint8]  # (K - 1 + L + 1, 3, H, W), starting with the frames before the episode
    numbers: NDArray[np.float32]  # (L + 1, D + 2), action, reward and discount of each row
    episode: ReplayEpisode
    held_out: bool

    @classmethod
    def copy(cls, episode: ReplayEpisode, held_out: bool) -> HeldEpisode:
        num_earlier = len(episode.earlier)
        frames = np.concatenate([episode.earlier, episode.frames])
        numbers = np.column_stack([episode.action, episode.reward, episode.discount]).astype(np.float32)
        columns = numbers[:, :-2], numbers[:, -2], numbers[:, -1]
        return cls(frames, numbers, ReplayEpisode(frames[num_earlier:], frames[:num_earlier], *columns), held_out)


Rows = list[tuple[HeldEpisode, int]]


class ReplayBuffer:
    """Buffer of up to ``capacity`` rows; when it is full, whole episodes are dropped, oldest first.

    Samples depend only on the episodes, their order and the generator. `mbrl.replay.replay_memory` computes the
    memory.

    Attributes:
        num_added: number of episodes ever added; the buffer holds the last of them.
        num_collected: number of episodes added by :meth:`add`, without demonstrations.
    """

    def __init__(self, capacity: int, shape: EpisodeShape, pin_memory: bool = False) -> None:
        self.capacity = capacity
        self.shape = shape
        self.num_rows = 0
        self.num_added = 0
        self.num_collected = 0
        self._pin_memory = pin_memory
        self._held: dict[int, HeldEpisode] = {}  # by number since the beginning, oldest first
        self._table: NDArray[np.void] | None = None  # see _entries

    @property
    def num_episodes(self) -> int:
        return len(self._held)

    def add(self, episode: ReplayEpisode, demonstration: bool = False) -> None:
        """Add a real episode. Every tenth collected one is held out; demonstrations never are.

        Raises:
            UserError: the episode has another shape than the others, or does not fit into the buffer at all.
        """
        held_out = not demonstration and self.num_collected % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        self.insert(episode, held_out)
        self.num_collected += not demonstration

    def add_imagined(self, episodes: Imagined) -> None:
        """Add imagined episodes, on any device. They end by being cut off, so nothing is discounted."""
        parts = episodes.frames, episodes.earlier, episodes.action, episodes.reward
        for frames, earlier, action, reward in zip(*(part.cpu().numpy() for part in parts)):
            self.insert(ReplayEpisode(frames, earlier, action, reward, np.ones_like(reward)), held_out=False)

    def insert(self, episode: ReplayEpisode, held_out: bool) -> None:
        self._check(episode)
        steps = episode.num_steps
        while self.num_rows + steps > self.capacity:
            self._drop_oldest()
        self._held[self.num_added] = HeldEpisode.copy(episode, held_out)
        self._table = None
        self.num_rows += steps
        self.num_added += 1

    def _check(self, episode: ReplayEpisode) -> None:
        if (shape := EpisodeShape.of(episode)) != self.shape:
            raise UserError(f"an episode has {shape}, this run has {self.shape}: record it as the others were")
        assert episode.frames.dtype == np.uint8
        if episode.num_steps > self.capacity:
            raise UserError(
                f"an episode of {episode.num_steps} steps does not fit into a replay buffer for {self.capacity} rows: "
                "raise replay_buffer_size or shorten episodes"
            )

    @property
    def _entries(self) -> NDArray[np.void]:
        """Return the steps of each episode and whether it is held out, oldest first; cached until a change."""
        if self._table is None:
            entries = [(held.episode.num_steps, held.held_out) for held in self._held.values()]
            self._table = np.array(entries, [("num_steps", np.int64), ("held_out", np.bool_)])
        return self._table

    @property
    def _oldest(self) -> int:
        return self.num_added - self.num_episodes

    def _drop_oldest(self) -> None:
        self.num_rows -= self._held.pop(self._oldest).episode.num_steps
        self._table = None

    def clear(self) -> None:
        while self.num_episodes:
            self._drop_oldest()

    def episodes(self, first: int, end: int) -> Iterator[tuple[ReplayEpisode, bool]]:
        """Yield episodes by number since the beginning, and whether each is held out. Views, not copies."""
        for number in range(first, end):
            yield self._held[number].episode, self._held[number].held_out

    def sample(self, batch_size: int, nstep: int, discount: float, rng: np.random.Generator) -> Transitions:
        """Sample a new batch, see :meth:`sample_into`."""
        batch = self.empty_batch(batch_size)
        self.sample_into(batch, nstep, discount, rng)
        return batch

    def empty_batch(self, batch_size: int) -> Transitions:
        stacks = (batch_size, self.shape.frame_stack * FRAME_CHANNELS, *self.shape.image_size)
        return Transitions(
            obs=self._empty(stacks, torch.uint8),
            action=self._empty((batch_size, self.shape.action_dim), torch.float32),
            reward=self._empty((batch_size,), torch.float32),
            discount=self._empty((batch_size,), torch.float32),
            next_obs=self._empty(stacks, torch.uint8),
        )

    def sample_into(self, batch: Transitions, nstep: int, discount: float, rng: np.random.Generator) -> None:
        """Fill a batch: sample an episode of at least ``nstep`` steps uniformly, then its first row uniformly.

        The batch is sorted by age of the episodes.
        """
        rows = self._sample_rows(len(batch), nstep, rng)
        self._read_stacks(rows, 1, batch.obs)
        self._read_stacks(rows, 1 - nstep, batch.next_obs)
        numbers = np.stack([held.numbers[row : row + nstep] for held, row in rows])
        worth = np.cumprod(discount * numbers[..., -1].astype(np.float64), axis=1)
        weights = np.concatenate([np.ones((len(rows), 1)), worth[:, :-1]], axis=1)
        batch.action.numpy()[:] = numbers[:, 0, :-2]
        batch.reward.numpy()[:] = (weights * numbers[..., -2]).sum(1)
        batch.discount.numpy()[:] = worth[:, -1]

    def sample_starts(self, batch_size: int, nstep: int, rng: np.random.Generator) -> Tensor:
        """Sample only the observations (B, 3 K, H, W) uint8 of a batch."""
        obs = self.empty_batch(batch_size).obs
        self._read_stacks(self._sample_rows(batch_size, nstep, rng), 1, obs)
        return obs

    def _sample_rows(self, batch_size: int, nstep: int, rng: np.random.Generator) -> Rows:
        """Sample the first rows of transitions, in the order of their episodes."""
        num_steps = self._entries["num_steps"]
        long_enough = np.flatnonzero(num_steps >= nstep)
        if not len(long_enough):
            raise UserError(f"none of {self.num_episodes} episodes has the {nstep} steps of nstep: lower it")
        episodes = long_enough[np.sort(rng.integers(len(long_enough), size=batch_size))]
        return self._rows(episodes, rng.integers(1, num_steps[episodes] - nstep + 2))

    def _rows(self, episodes: NDArray[np.int64], rows: NDArray[np.int64]) -> Rows:
        """Look up rows of episodes, which are counted from the oldest one."""
        oldest = self._oldest
        return [(self._held[oldest + episode], row) for episode, row in zip(episodes.tolist(), rows.tolist())]

    def num_segments(self, length: int, held_out: bool) -> int:
        """Return the number of segments of ``length`` frames to sample from."""
        return int(self._segments_of(self._of_kind(held_out), length).sum())

    def sample_segments(
        self, batch_size: int, length: int, rng: np.random.Generator, held_out: bool = False
    ) -> Segments:
        """Sample segments uniformly from the episodes that are, or are not, held out."""
        episode_ids = self._of_kind(held_out)
        before = np.cumsum(self._segments_of(episode_ids, length))
        if not before[-1:].any():
            kind = "held-out" if held_out else "other"
            raise UserError(
                f"none of {len(episode_ids)} {kind} episodes has the {length} steps of a segment: "
                "collect more, or lower gen_horizon or world_model.context_length"
            )
        drawn = rng.integers(before[-1], size=batch_size)
        which = np.searchsorted(before, drawn, side="right")
        rows = self._rows(episode_ids[which], before[which] - drawn)  # counted from the last one, so at least 1
        frames = self._empty((batch_size, length, *self.shape.frame), torch.uint8)
        np.stack([held.episode.frames[row - 1 : row - 1 + length] for held, row in rows], out=frames.numpy())
        numbers = torch.from_numpy(np.stack([held.numbers[row : row + length] for held, row in rows]))
        return Segments(frames, numbers[..., :-2].contiguous(), numbers[..., -2].contiguous())

    def _of_kind(self, held_out: bool) -> NDArray[np.int64]:
        """Return the episodes that are, or are not, held out, counted from the oldest one."""
        return np.flatnonzero(self._entries["held_out"] == held_out)

    def _segments_of(self, episodes: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        return np.maximum(self._entries["num_steps"][episodes] - length + 1, 0)

    def _read_stacks(self, rows: Rows, back: int, stacks: Tensor) -> None:
        """Copy the frame stacks ``back`` rows before each row into ``stacks`` (B, 3 K, H, W)."""
        num_stacked = self.shape.frame_stack
        out = stacks.numpy().reshape(len(rows), num_stacked, *self.shape.frame)
        np.stack([held.all_frames[row - back : row - back + num_stacked] for held, row in rows], out=out)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._pin_memory)


def sample_mixed(
    real: ReplayBuffer,
    imagined: ReplayBuffer,
    real_ratio: float,
    batch_size: int,
    nstep: int,
    discount: float,
    rng: np.random.Generator,
) -> Transitions:
    """Sample a batch with a share ``real_ratio`` of real rows; only real ones while nothing is imagined."""
    num_real = round(real_ratio * batch_size) if imagined.num_episodes else batch_size
    batch = real.empty_batch(batch_size)
    if num_real:
        real.sample_into(batch[:num_real], nstep, discount, rng)
    if num_real < batch_size:
        imagined.sample_into(batch[num_real:], nstep, discount, rng)
    return batch
