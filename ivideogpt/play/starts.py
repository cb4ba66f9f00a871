"""Starts of a game: the context frames, and the real world beside the imagined one.

Shapes: t context frames, H W pixels, D action dimension.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.catalog import dataset_info, stepsize_as_trained
from ivideogpt.data.clips.transforms import resize, truncate
from ivideogpt.data.formats.episodes import Episode, Episodes, check_carries
from ivideogpt.data.formats.registry import find_episodes
from ivideogpt.errors import UserError
from ivideogpt.metadata import ModelMetadata
from ivideogpt.video_io import Pixels

Floats = NDArray[np.float32]
MAX_EPISODES = 200  # offered of one dataset
MAX_RECORDED = 1000  # frames that are read of one episode


@dataclass(frozen=True)
class Outcome:
    """Result of an action: frame (H, W, 3), reward and success, each None where it is not known."""

    frame: Pixels | None
    reward: float | None = None
    success: bool | None = None


class RealWorld(Protocol):
    """World beside the dream, under the same actions. ``policies`` are by name, and look at its present state.

    ``end`` is the frame (H, W, 3) that the episode ends with, None where that is not known.
    """

    @property
    def end(self) -> Pixels | None: ...

    @property
    def policies(self) -> Mapping[str, Callable[[], Floats | None]]: ...

    def step(self, action: Floats) -> Outcome: ...

    def snapshot(self) -> Any:
        """Return everything that the future depends on."""

    def restore(self, state: Any) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Start:
    """Context frames (t, H, W, 3), the actions (t - 1, D) between them, and the real world after them."""

    context: Pixels
    actions: Floats
    real: RealWorld


@dataclass(frozen=True)
class StartChoice:
    """A start that the page offers. ``open`` makes it from a seed."""

    key: str
    title: str
    group: str
    open: Callable[[int], Start]


class RecordedWorld:
    """An episode: what happened is known as long as the actions are the recorded ones."""

    def __init__(self, frames: Pixels, actions: Floats, end: Pixels | None = None) -> None:
        """``end`` (H, W, 3) is the episode's last frame where that is later than the last of ``frames``."""
        self._frames, self._actions, self.end = frames, actions, frames[-1] if end is None else end
        self._index, self._is_known = 0, True
        self.policies = {"recorded": self._recorded} if actions.shape[1] else {}

    def step(self, action: Floats) -> Outcome:
        recorded = self._recorded()
        self._is_known = self._is_known and recorded is not None and bool(np.array_equal(action, recorded))
        self._index += 1
        return Outcome(self._frames[self._index] if self._is_known and self._index < len(self._frames) else None)

    def snapshot(self) -> tuple[int, bool]:
        return self._index, self._is_known

    def restore(self, state: tuple[int, bool]) -> None:
        self._index, self._is_known = state

    def close(self) -> None:
        return

    def _recorded(self) -> Floats | None:
        """Return the action that was taken at this time; the one at the last frame leads nowhere."""
        return self._actions[self._index] if self._index < len(self._frames) - 1 else None


def find_starts(
    path: str, metadata: ModelMetadata, group: str | None = None, action_space: str | None = None
) -> list[StartChoice]:
    """List the episodes at a path as starts, in the group of their dataset if none is named. None is opened yet.

    Of a model of several robots, datasets of others than that of ``action_space`` are left out.
    """
    choices, found = [], find_episodes(path)
    if metadata.action_spaces is not None:
        own = metadata.action_spaces.of_robot([dataset.name for dataset in found], action_space, path)
        found = [dataset for dataset in found if dataset.name in own]
    metadata = metadata.for_space(action_space)
    for dataset in found:
        step = dataset_info(dataset.name).step(stepsize_as_trained([dataset.name], metadata.dataset_step))
        for number in range(min(len(dataset.episodes), MAX_EPISODES)):
            name = dataset.episodes.name(number)
            title = _printable(name.rpartition("/")[2].removesuffix(".npz"))
            key, under = _printable(f"episode:{dataset.name}#{number}"), _printable(group or dataset.name)
            opened = partial(open_start, dataset.episodes, number, metadata, step)
            choices.append(StartChoice(key, title, under, opened))
    return choices


def _printable(name: str) -> str:
    """Return a file's name as a text that can be sent: on Linux it may be no UTF-8."""
    return os.fsencode(name).decode(errors="replace")


def open_start(episodes: Episodes, number: int, metadata: ModelMetadata, step: int, seed: int) -> Start:
    """Begin with the first frames of an episode, ``step`` apart; a goal-conditioned model gets the last one first."""
    episode = episodes.open(number)
    check_carries(episode, actions=metadata.action_dim is not None, action_dim=metadata.action_dim)
    indices = np.arange(0, episode.num_frames, step)
    frames, actions = read_episode(episode, metadata, indices[:MAX_RECORDED])
    (end,) = frames[-1:] if len(frames) == len(indices) else read_episode(episode, metadata, indices[-1:])[0]
    t = metadata.context_length
    if len(frames) < t:
        raise UserError(f"{episode.path}: {len(frames)} frames {step} apart, expected at least {t} as context")
    seen = t - metadata.goal_conditioned
    context = np.concatenate([end[None], frames[:seen]]) if metadata.goal_conditioned else frames[:t]
    return Start(context, actions[: seen - 1], RecordedWorld(frames[seen - 1 :], actions[seen - 1 :], end))


def read_episode(episode: Episode, metadata: ModelMetadata, indices: NDArray[np.int64]) -> tuple[Pixels, Floats]:
    """Read frames of an episode at the model's resolution, and the actions taken at them, (N, 0) without any."""
    frames = truncate(resize(episode.read(indices), metadata.resolution)).numpy().transpose(0, 2, 3, 1)
    actions = None if metadata.action_dim is None else episode.actions(indices)
    return frames, np.zeros((len(indices), 0), np.float32) if actions is None else actions
