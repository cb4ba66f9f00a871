"""Read one clip for a prediction from an npz episode."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ivideogpt.data.catalog import dataset_info
from ivideogpt.data.clips.segments import fitting_step, last_start
from ivideogpt.data.clips.transforms import resize, unit_range
from ivideogpt.data.formats.episodes import check_carries, open_episode
from ivideogpt.errors import UserError


@dataclass(frozen=True)
class Segment:
    """Frames (T, 3, S, S) float32 in [0, 1]; actions (T, D) and rewards (T,) if requested."""

    frames: Tensor
    actions: Tensor | None
    rewards: Tensor | None
    indices: tuple[int, ...]  # the frames' numbers in the episode


class NPZParser:
    """Cut one random segment out of an episode. Its start is sampled from NumPy's global generator."""

    def __init__(self, segment_length: int, image_size: int = 64) -> None:
        self.segment_length = segment_length
        self.image_size = image_size

    def parse(
        self, path: str | os.PathLike[str], dataset_name: str | None = None, load_action: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return frames (T, 3, S, S) in [0, 1] and, if requested, actions (T, D)."""
        segment = self.parse_segment(path, dataset_name, load_action)
        return segment.frames, segment.actions

    def parse_segment(
        self,
        path: str | os.PathLike[str],
        dataset_name: str | None = None,
        load_action: bool = False,
        load_reward: bool = False,
        action_dim: int | None = None,
        step: int | None = None,
    ) -> Segment:
        """Return frames and, if requested, actions and rewards.

        Args:
            action_dim: expected dimension of the actions.
            step: distance of the frames; by default the dataset's.

        Raises:
            UserError: the file is damaged, too short, or lacks a requested array.
        """
        info = dataset_info(dataset_name or "")
        episode = open_episode(path, info.image_keys)
        check_carries(episode, load_action, load_reward, action_dim)
        if episode.num_frames < self.segment_length:
            raise UserError(
                f"{episode.path}: {episode.num_frames} frames, fewer than the segment's {self.segment_length}; "
                "choose a longer episode or a shorter segment_length"
            )
        step = fitting_step(step or info.step(), self.segment_length, episode.num_frames)
        # The legacy generator, as documented: existing seeds must keep selecting the same segments.
        start = np.random.randint(last_start(episode.num_frames, self.segment_length, step) + 1)
        indices = start + step * np.arange(self.segment_length)
        actions = episode.actions(indices) if load_action else None
        rewards = episode.rewards(indices) if load_reward else None
        return Segment(
            frames=unit_range(resize(episode.read(indices), self.image_size)),
            actions=None if actions is None else torch.from_numpy(actions),
            rewards=None if rewards is None else torch.from_numpy(rewards),
            indices=tuple(indices.tolist()),
        )
