"""A fixed list of clips to score a model on, read by number.

Shapes: B clips, T frames.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ivideogpt.action_spaces import ActionSpaces
from ivideogpt.data.catalog import Split
from ivideogpt.data.clips.batches import ClipBatch
from ivideogpt.data.clips.dataset import ClipDataset, DataConfig, PickInOrder, build_sources
from ivideogpt.data.clips.loaders import benchmark_clips
from ivideogpt.data.formats.episodes import Episodes
from ivideogpt.errors import UserError


@dataclass(frozen=True)
class ClipOrigin:
    """Origin of a clip: dataset, and the episode's file, with folders only where files of several have one name."""

    dataset: str
    episode: str

    def __str__(self) -> str:
        return f"{self.dataset}/{self.episode}"


class EvaluationClips:
    """Clips 0, 1, ... of a list. A clip depends only on its number, not on the batch it is read in."""

    def __init__(self, clips: ClipDataset, order: Sequence[int]) -> None:
        self._clips, self._order = clips, order
        # folder that a source's names share, by the source; None where the files' names tell them apart
        self._folders: dict[int, str | None] = {}

    def __len__(self) -> int:
        return len(self._order)

    def read(self, numbers: Sequence[int]) -> ClipBatch:
        """Read the clips with these numbers, on the CPU.

        Raises:
            UserError: an episode cannot be read, lacks requested actions, or is shorter than a clip.
        """
        batch = self._clips.__getitems__([self._order[number] for number in numbers])
        if isinstance(batch, UserError):
            raise batch
        return batch.to("cpu")

    @property
    def num_episodes(self) -> int:
        return len({self.origin(number) for number in range(len(self))})

    def next_of_another_episode(self, number: int) -> int | None:
        """Return the next clip, cyclically, of another episode of the same robot; None if there is none."""
        following = ((number + step) % len(self) for step in range(1, len(self)))
        own, space = self.origin(number), self.action_space(number)
        alike = (other for other in following if self.action_space(other) == space)
        return next((other for other in alike if self.origin(other) != own), None)

    @property
    def action_spaces(self) -> ActionSpaces | None:
        """Action spaces that actions are encoded by; None if they are as recorded."""
        config = self._clips.config
        return config.action_spaces if config.load_action else None

    def action_space(self, number: int) -> str | None:
        """Return the name of the action space of a clip; None where there are none."""
        spaces = self.action_spaces
        return None if spaces is None else spaces.find_for(self.origin(number).dataset).name

    def origin(self, number: int) -> ClipOrigin:
        source, index = self._clips.pick(self._order[number], np.random.default_rng(0))
        name, shared = source.episodes.name(index), self._shared_folder(source.episodes)
        return ClipOrigin(source.info.name, os.path.basename(name) if shared is None else os.path.relpath(name, shared))

    def _content(self, number: int) -> int:
        """Return the checksum of the content of a clip's episode; 0 if it is unreadable, as reading the clip tells."""
        source, index = self._clips.pick(self._order[number], np.random.default_rng(0))
        try:
            return source.episodes.open(index).content_checksum()
        except UserError:
            return 0

    def _shared_folder(self, episodes: Episodes) -> str | None:
        if id(episodes) not in self._folders:
            names = [episodes.name(index) for index in range(len(episodes))]
            are_unique = len(set(map(os.path.basename, names))) == len(names)
            self._folders[id(episodes)] = None if are_unique else os.path.commonpath(map(os.path.dirname, names))
        return self._folders[id(episodes)]

    def checksum(self) -> str:
        """Return a checksum of the settings, episode names and contents, equal for equal lists of clips."""
        config = self._clips.config
        settings = f"{self._clips.seed} {config.segment} {config.video_stepsize} {config.image_size}"
        listed = "\n".join(f"{self.origin(number)} {self._content(number)}" for number in range(len(self)))
        return hashlib.blake2b(f"{settings}\n{listed}".encode(), digest_size=16).hexdigest()


def build_evaluation_clips(
    config: DataConfig, split: Split, num_clips: int | None, seed: int, at_most: int | None = None
) -> EvaluationClips:
    """Build ``num_clips`` clips from the episodes in turn; by default one of each, up to ``at_most``.

    Shuffled, so that a few clips already come from different datasets.
    """
    pick = PickInOrder([source for source, _ in build_sources(config, split)])
    num_clips = min(pick.num_episodes, at_most or pick.num_episodes) if num_clips is None else num_clips
    order = torch.randperm(max(num_clips, pick.num_episodes), generator=torch.Generator().manual_seed(seed))
    return EvaluationClips(ClipDataset(config, pick, seed), order[:num_clips].tolist())


def build_benchmark_evaluation(config: DataConfig, num_clips: int | None) -> EvaluationClips:
    """Build a benchmark's evaluation clips in order, or the first ``num_clips``; ``config.mix`` names the benchmark.

    Raises:
        UserError: there is no such benchmark.
    """
    clips, available = benchmark_clips(config)
    return EvaluationClips(clips, range(available if num_clips is None else min(num_clips, available)))
