"""Episodes in which every number says where it stands."""

from __future__ import annotations

import numpy as np

from mbrl.replay.episodes import ReplayEpisode
from mbrl.replay.replay_buffer import EpisodeShape, ReplayBuffer

SIZE = (4, 6)
STACK = 3
SHAPE = EpisodeShape(STACK, SIZE, action_dim=2)


def counting_episode(num_steps: int, first: int = 0) -> ReplayEpisode:
    """Row i: frames are i + first, the reward i + first, the actions that and its negative; earlier frames 250, 251."""
    rows = np.arange(num_steps + 1) + first
    return ReplayEpisode(
        frames=np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (num_steps + 1, 3, *SIZE)),
        earlier=np.broadcast_to(np.uint8([250, 251])[:, None, None, None], (STACK - 1, 3, *SIZE)),
        action=np.stack([rows, -rows], axis=1).astype(np.float32),
        reward=rows.astype(np.float32),
        discount=np.ones(num_steps + 1, np.float32),
    )


def buffer_of(*lengths: int, capacity: int = 500) -> ReplayBuffer:
    """Collected episodes; the rows of the e-th begin at 20 e."""
    buffer = ReplayBuffer(capacity, SHAPE)
    for number, length in enumerate(lengths):
        buffer.add(counting_episode(length, 20 * number))
    return buffer


def same_samples(one: ReplayBuffer, other: ReplayBuffer, seed: int = 0) -> bool:
    batches = [buffer.sample(64, 3, 0.99, np.random.default_rng(seed)) for buffer in (one, other)]
    segments = [buffer.sample_segments(64, 4, np.random.default_rng(seed)) for buffer in (one, other)]
    return all(
        getattr(a, name).equal(getattr(b, name)) for a, b in (batches, segments) for name in vars(a)
    )  # fmt: skip
