"""Episodes to learn from, real ones or imagined: every frame is held once, and stacks are put together when sampled.

Knows episodes and random numbers; knows no environment, no agent and no files.

Shapes: B batch, S frames of a segment, L agent steps, K frames in a stack, H W pixels, D action dimension.
Row 0 of an episode is its start; row i in 1 .. L holds the action that led to its frame, and what that earned.
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
from mbrl.replay.frame_blocks import FilmStore, Places, frames_in_a_block

HELD_OUT_EVERY = 10  # collected episodes: the last of every ten is kept from the world model's training


@dataclass(frozen=True)
class Transitions:
    """Steps of n rows each.

    Attributes:
        obs, next_obs: (B, 3 K, H, W) uint8, oldest frame first.
        action: (B, D) taken at ``obs``, float32 in [-1, 1].
        reward: (B,) float32, discounted sum over the n rows.
        discount: (B,) float32, what the value of ``next_obs`` is worth at ``obs``.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Tensor

    def __len__(self) -> int:
        return len(self.obs)

    def __getitem__(self, rows: slice) -> Transitions:
        return Transitions(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device) -> Transitions:
        return Transitions(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


@dataclass(frozen=True)
class Segments:
    """Stretches of episodes.

    Attributes:
        frames: (B, S, 3, H, W) uint8.
        actions: (B, S, D); actions[:, j] was taken at frames[:, j] and led on from it.
        rewards: (B, S) of those actions.
    """

    frames: Tensor
    actions: Tensor
    rewards: Tensor


@dataclass(frozen=True)
class EpisodeShape:
    """What all episodes of a buffer have in common."""

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


class EpisodeTable:
    """One entry for each episode, oldest first; entries are added at one end and leave at the other."""

    ENTRY = np.dtype([("place", np.int64), ("num_steps", np.int64), ("held_out", np.bool_)])

    def __init__(self) -> None:
        self._entries = np.empty(64, self.ENTRY)
        self._begin = self._end = 0

    @property
    def entries(self) -> np.ndarray:
        return self._entries[self._begin : self._end]

    def __len__(self) -> int:
        return self._end - self._begin

    def append(self, place: int, num_steps: int, held_out: bool) -> None:
        if self._end == len(self._entries):
            grown = np.empty(2 * len(self) + 64, self.ENTRY)
            grown[: len(self)] = self.entries
            self._entries, self._begin, self._end = grown, 0, len(self)
        self._entries[self._end] = (place, num_steps, held_out)
        self._end += 1

    def remove_oldest(self) -> np.void:
        self._begin += 1
        return self._entries[self._begin - 1]


class ReplayBuffer:
    """Up to ``capacity`` rows; whole episodes leave, oldest first, when a new one needs the room.

    What is sampled depends on the episodes, their order and the generator, not on where they lie in memory. Memory:
    `mbrl.replay.replay_memory` says how much.

    Attributes:
        num_added: episodes ever added; the ones held are the last of them.
        num_collected: those of them that :meth:`add` took as collected.
    """

    def __init__(self, capacity: int, shape: EpisodeShape, pin_memory: bool = False) -> None:
        self.capacity = capacity
        self.shape = shape
        self.num_rows = 0
        self.num_added = 0
        self.num_collected = 0
        self._pin_memory = pin_memory
        self._table = EpisodeTable()
        self._films = FilmStore(shape.frame, frames_in_a_block(capacity))
        # Beside each frame of the films: the row that it belongs to. Nothing beside an episode's earlier frames.
        self._action = np.zeros((0, shape.action_dim), np.float32)
        self._reward = np.zeros(0, np.float32)
        self._discount = np.zeros(0, np.float32)

    @property
    def num_episodes(self) -> int:
        return len(self._table)

    def add(self, episode: ReplayEpisode, demonstration: bool = False) -> None:
        """Take a real episode. Every tenth collected one is held out; demonstrations never are.

        Raises:
            UserError: the episode has another shape than the others, or does not fit into the buffer at all.
        """
        held_out = not demonstration and self.num_collected % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        self.insert(episode, held_out)
        self.num_collected += not demonstration

    def add_many(self, frames: Tensor, earlier: Tensor, action: Tensor, reward: Tensor, discount: Tensor) -> None:
        """Take imagined episodes: ``frames`` (B, L + 1, 3, H, W) and ``earlier`` (B, K - 1, 3, H, W) in uint8,
        ``action`` (B, L + 1, D), ``reward`` and ``discount`` (B, L + 1), on any device.
        """
        for arrays in zip(*(part.cpu().numpy() for part in (frames, earlier, action, reward, discount))):
            self.insert(ReplayEpisode(*arrays), held_out=False)

    def insert(self, episode: ReplayEpisode, held_out: bool) -> None:
        self._check(episode)
        steps, num_earlier = episode.num_steps, len(episode.earlier)
        while self.num_rows + steps > self.capacity:
            self._drop_oldest()
        place = self._films.reserve(num_earlier + steps + 1)
        film = self._films.film(place, num_earlier + steps + 1)
        film[:num_earlier], film[num_earlier:] = episode.earlier, episode.frames
        self._widen_rows()
        rows = slice(place + num_earlier, place + num_earlier + steps + 1)
        self._action[rows], self._reward[rows] = episode.action, episode.reward
        self._discount[rows] = episode.discount
        self._table.append(place, steps, held_out)
        self.num_rows += steps
        self.num_added += 1

    def _check(self, episode: ReplayEpisode) -> None:
        if (shape := EpisodeShape.of(episode)) != self.shape:
            raise UserError(f"an episode has {shape}, this run has {self.shape}: record it as the others were")
        assert episode.frames.dtype == np.uint8
        longest = min(self.capacity, self._films.block_frames - self.shape.frame_stack)
        if episode.num_steps > longest:
            raise UserError(
                f"an episode of {episode.num_steps} steps does not fit into a replay buffer for {self.capacity} rows "
                f"in blocks of {self._films.block_frames} frames: raise replay_buffer_size or shorten episodes"
            )

    def _drop_oldest(self) -> None:
        oldest = self._table.remove_oldest()
        self._films.release(int(oldest["place"]))
        self.num_rows -= int(oldest["num_steps"])

    def clear(self) -> None:
        """Forget all episodes."""
        while self.num_episodes:
            self._drop_oldest()

    def _widen_rows(self) -> None:
        """As many rows as there are frames in the blocks: they are small enough to be moved now and then."""
        missing = self._films.num_blocks * self._films.block_frames - len(self._reward)
        if missing:
            self._action = np.concatenate([self._action, np.zeros((missing, self.shape.action_dim), np.float32)])
            self._reward = np.concatenate([self._reward, np.zeros(missing, np.float32)])
            self._discount = np.concatenate([self._discount, np.zeros(missing, np.float32)])

    def episodes(self, first: int, end: int) -> Iterator[tuple[ReplayEpisode, bool]]:
        """Held episodes by their number since the beginning, and whether each is held out. Views, not copies."""
        num_earlier = self.shape.frame_stack - 1
        oldest = self.num_added - self.num_episodes
        for entry in self._table.entries[first - oldest : end - oldest]:
            place, length = int(entry["place"]), num_earlier + int(entry["num_steps"]) + 1
            film, rows = self._films.film(place, length), slice(place + num_earlier, place + length)
            parts = self._action[rows], self._reward[rows], self._discount[rows]
            yield ReplayEpisode(film[num_earlier:], film[:num_earlier], *parts), bool(entry["held_out"])

    def sample(self, batch_size: int, nstep: int, discount: float, rng: np.random.Generator) -> Transitions:
        """As :meth:`sample_into`, into a new batch."""
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
        """Fill a batch: an episode of at least ``nstep`` steps uniformly, then the first of its rows uniformly.

        Rows stand in the order of their episodes' age.
        """
        rows = self._draw_rows(len(batch), nstep, rng)
        self._read(rows - self.shape.frame_stack, batch.obs)  # the stack of the row before
        self._read(rows - self.shape.frame_stack + nstep, batch.next_obs)
        steps = rows[:, None] + np.arange(nstep)
        worth = np.cumprod(discount * self._discount[steps].astype(np.float64), axis=1)
        weights = np.concatenate([np.ones((len(rows), 1)), worth[:, :-1]], axis=1)
        batch.action.numpy()[:] = self._action[rows]
        batch.reward.numpy()[:] = (weights * self._reward[steps]).sum(1)
        batch.discount.numpy()[:] = worth[:, -1]

    def sample_starts(self, batch_size: int, nstep: int, rng: np.random.Generator) -> Tensor:
        """(B, 3 K, H, W) uint8: the observations of a sample."""
        obs = self.empty_batch(batch_size).obs
        self._read(self._draw_rows(batch_size, nstep, rng) - self.shape.frame_stack, obs)
        return obs

    def _draw_rows(self, batch_size: int, nstep: int, rng: np.random.Generator) -> Places:
        """(B,) places of the first rows of transitions, in the order of their episodes."""
        entries = self._table.entries
        long_enough = np.flatnonzero(entries["num_steps"] >= nstep)
        if not len(long_enough):
            raise UserError(f"none of {self.num_episodes} episodes has the {nstep} steps of nstep: lower it")
        # By age, as they lie in memory: the order of a batch has no meaning.
        drawn = entries[long_enough[np.sort(rng.integers(len(long_enough), size=batch_size))]]
        return self._place_of_row(drawn, rng.integers(1, drawn["num_steps"] - nstep + 2))

    def num_segments(self, length: int, held_out: bool) -> int:
        """How many segments of ``length`` frames there are to sample from."""
        return int(self._segments_of(self._of_kind(held_out), length).sum())

    def sample_segments(
        self, batch_size: int, length: int, rng: np.random.Generator, held_out: bool = False
    ) -> Segments:
        """All segments of the episodes that are, or are not, held out are equally likely."""
        entries = self._of_kind(held_out)
        before = np.cumsum(self._segments_of(entries, length))
        if not before[-1:].any():
            kind = "held-out" if held_out else "other"
            raise UserError(
                f"none of {len(entries)} {kind} episodes has the {length} steps of a segment: "
                "collect more, or lower gen_horizon or world_model.context_length"
            )
        drawn = rng.integers(before[-1], size=batch_size)
        episode = np.searchsorted(before, drawn, side="right")
        rows = self._place_of_row(entries[episode], before[episode] - drawn)  # counted from the last one: in 1 ..
        frames = self._empty((batch_size, length, *self.shape.frame), torch.uint8)
        self._films.read(rows - 1, frames.numpy())
        steps = rows[:, None] + np.arange(length)
        return Segments(frames, torch.from_numpy(self._action[steps]), torch.from_numpy(self._reward[steps]))

    def _of_kind(self, held_out: bool) -> np.ndarray:
        return self._table.entries[self._table.entries["held_out"] == held_out]

    @staticmethod
    def _segments_of(entries: np.ndarray, length: int) -> NDArray[np.int64]:
        return np.maximum(entries["num_steps"] - length + 1, 0)

    def _place_of_row(self, entries: np.ndarray, row: NDArray[np.int64]) -> Places:
        return entries["place"] + self.shape.frame_stack - 1 + row

    def _read(self, places: Places, stacks: Tensor) -> None:
        self._films.read(places, stacks.numpy().reshape(len(places), self.shape.frame_stack, *self.shape.frame))

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
    """A batch of which ``real_ratio`` is real; all of it as long as nothing has been imagined."""
    num_real = round(real_ratio * batch_size) if imagined.num_episodes else batch_size
    batch = real.empty_batch(batch_size)
    if num_real:
        real.sample_into(batch[:num_real], nstep, discount, rng)
    if num_real < batch_size:
        imagined.sample_into(batch[num_real:], nstep, discount, rng)
    return batch
