"""The clips of a token store, by number, so that any process can read any of them. Knows no model.

Clips are all contiguous segments at every ``stride``-th start of every episode, in order, pass after pass. The first
pass is not augmented; each later pass samples a new augmentation for every clip.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ivideogpt.data.clips.batches import BadEpisode, PackedClips
from ivideogpt.data.clips.dataset import SERIES, DataConfig, PickInOrder, Source
from ivideogpt.data.clips.segments import Windows
from ivideogpt.data.formats.episodes import Episode
from ivideogpt.data.tokens.token_store import StoredSource
from ivideogpt.errors import UserError


@dataclass(frozen=True)
class StoredClips:
    """The clips of ``num_passes`` passes over some sources.

    Attributes:
        sources: sources without augmentation; later passes use the configuration's.
        action_dim: dimension of the actions of all clips, as they are stored; None without actions.
        lengths: number of frames of each episode, source by source; 0 for a bad episode.
        contents: checksum of the content of each episode, likewise.
    """

    config: DataConfig
    sources: tuple[Source, ...]
    action_dim: int | None
    has_rewards: bool
    has_successes: bool
    lengths: NDArray[np.int64]
    contents: NDArray[np.int64]
    stride: int
    num_passes: int
    seed: int

    @cached_property
    def _pick(self) -> PickInOrder:
        return PickInOrder(self.sources)

    @cached_property
    def _ends_of_episodes(self) -> NDArray[np.int64]:
        """Return the number of clips of one pass up to the end of each episode."""
        return np.cumsum([len(self._windows(i)) if frames else 0 for i, frames in enumerate(self.lengths)])

    @property
    def clips_per_pass(self) -> int:
        return int(self._ends_of_episodes[-1])

    def __len__(self) -> int:
        return self.clips_per_pass * self.num_passes

    def read(self, number: int) -> PackedClips:
        """Read one clip as a batch of one."""
        turn, clip = divmod(number, self.clips_per_pass)
        episode = self._episode(clip)
        windows = self._windows(episode)
        indices = windows[clip - int(self._ends_of_episodes[episode]) + len(windows)]
        source, index = self._pick(episode)
        if turn > 0:
            source = replace(source, preprocess=replace(source.preprocess, augmentation=self.config.augmentation))
        rng = np.random.default_rng((self.seed, turn, clip))
        series = compress(SERIES, (self.action_dim is not None, self.has_rewards, self.has_successes))
        return source.cut(source.episodes.open(index), indices, rng, series)

    def name(self, number: int) -> str:
        """Return the name of the episode that a clip is cut from."""
        source, index = self._pick(self._episode(number % self.clips_per_pass))
        return source.episodes.name(index)

    def stored_sources(self) -> tuple[StoredSource, ...]:
        """Return the datasets with their numbers of stored episodes and clips."""
        ends = np.append(0, self._ends_of_episodes)[np.append(0, self._pick.ends)]
        return tuple(
            StoredSource(source.info.name, len(source.episodes), int(last - first))
            for source, first, last in zip(self.sources, ends, ends[1:])
        )

    def checksum(self) -> str:
        """Return a checksum of the names, lengths and contents of all episodes."""
        digest = hashlib.blake2b(digest_size=16)
        for i, measured in enumerate(zip(self.lengths.tolist(), self.contents.tolist(), strict=True)):
            source, index = self._pick(i)
            name = os.path.basename(source.episodes.name(index))
            digest.update(f"{source.info.name} {name} {measured}\n".encode())
        return digest.hexdigest()

    def _episode(self, clip: int) -> int:
        return int(np.searchsorted(self._ends_of_episodes, clip, side="right"))

    def _windows(self, episode: int) -> Windows:
        source, _ = self._pick(episode)
        step = source.info.step(self.config.video_stepsize)
        return Windows(int(self.lengths[episode]), self.config.segment.length, step, self.stride)


@dataclass(frozen=True)
class Measured:
    """Number of frames of an episode, and a checksum of its content."""

    num_frames: int
    content: int


def measure(
    sources: Sequence[Source], check: Callable[[Source, Episode], None], skip_bad: bool, rank: int, world_size: int
) -> list[Measured | BadEpisode]:
    """Open, check and measure every ``world_size``-th episode from ``rank`` on; a bad one stands for itself.

    Raises:
        UserError: an episode is bad, unless bad ones are skipped.
    """
    measured: list[Measured | BadEpisode] = []
    pick = PickInOrder(sources)
    for source, index in map(pick, range(rank, pick.num_episodes, world_size)):
        try:
            episode = source.episodes.open(index)
            check(source, episode)
            measured.append(Measured(episode.num_frames, episode.content_checksum()))
        except UserError as error:
            if not skip_bad:
                raise
            measured.append(BadEpisode(source.episodes.name(index), str(error)))
    return measured


def joined(
    parts: Sequence[Sequence[Measured | BadEpisode]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[BadEpisode]]:
    """Interleave the measurements of all ranks; return lengths and contents, 0 for bad episodes, and the bad ones."""
    measured: list[Any] = [0] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        measured[rank :: len(parts)] = part
    bad = [episode for episode in measured if isinstance(episode, BadEpisode)]
    numbers = [(0, 0) if isinstance(each, BadEpisode) else (each.num_frames, each.content) for each in measured]
    lengths, contents = np.array(numbers, dtype=np.int64).reshape(-1, 2).T
    return lengths, contents, bad


@dataclass(frozen=True)
class Portion:
    """Some clips of a shard in order, without the unreadable ones."""

    shard: int
    is_last: bool  # whether it is the last one of its shard
    num_clips: int
    clips: PackedClips | None
    skipped: tuple[BadEpisode, ...]


class Portions(Dataset[Portion | UserError]):
    """Batches of the clips of some shards. No batch spans two shards, so that shards are independent."""

    def __init__(self, clips: StoredClips, shards: Sequence[tuple[int, range]], batch_size: int) -> None:
        self._clips = clips
        self._batches = [
            (shard, numbers[first : first + batch_size], first + batch_size >= len(numbers))
            for shard, numbers in shards
            for first in range(0, len(numbers), batch_size)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def num_clips(self) -> int:
        return sum(len(numbers) for _, numbers, _ in self._batches)

    def __getitem__(self, index: int) -> Portion | UserError:
        """Read a portion, or return the error: raised in a worker it would arrive inside a traceback."""
        shard, numbers, is_last = self._batches[index]
        clips, skipped = [], []
        for number in numbers:
            try:
                clips.append(self._clips.read(number))
            except UserError as error:
                if self._clips.config.on_bad_episode == "error":
                    return error
                skipped.append(BadEpisode(self._clips.name(number), str(error)))
        joined = PackedClips.concatenate(clips) if clips else None
        return Portion(shard, is_last, len(numbers), joined, tuple(skipped))
