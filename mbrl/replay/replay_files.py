"""A replay buffer on disk: pieces of consecutive episodes, each written once and never changed.

A manifest says which pieces make up the buffer. Whoever saves a run writes new pieces, puts the manifest in place
together with everything else of the run, and only then removes pieces that it does not name: at every moment there is
one manifest, and all of its pieces.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.errors import UserError
from ivideogpt.files import PARTIAL_SUFFIX, atomic_file
from mbrl.replay.episodes import ReplayEpisode
from mbrl.replay.replay_buffer import ReplayBuffer

PIECE_ROWS = 4_096  # 50 MB at 64 px: also what is copied in memory while it is written
ARRAYS = ("frames", "action", "reward", "discount", "num_steps", "held_out")


@dataclass(frozen=True)
class Manifest:
    """Numbers and places of the episodes of a saved buffer, counted since the run began."""

    capacity: int  # rows of the buffer decide what is sampled: a run goes on with as many
    oldest: int
    num_added: int
    num_collected: int
    pieces: tuple[tuple[int, int], ...]  # (first, end) of each, in order; the first may begin before ``oldest``

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Manifest:
        return cls(**{**saved, "pieces": tuple((first, end) for first, end in saved["pieces"])})


class ReplayFiles:
    """Saves one buffer in one folder that is nothing else's."""

    def __init__(self, folder: Path, buffer: ReplayBuffer) -> None:
        self._folder = folder
        self._buffer = buffer
        self._pieces: list[tuple[int, int]] = []

    def write(self) -> Manifest:
        """Write the episodes added since the last time. Pieces of earlier manifests stay as they are.

        Raises:
            OSError: the disk is full or cannot be written to. What was saved before is as it was.
        """
        buffer = self._buffer
        oldest = buffer.num_added - buffer.num_episodes
        self._pieces = [piece for piece in self._pieces if piece[1] > oldest]
        unsaved = max(oldest, self._pieces[-1][1] if self._pieces else 0)
        self._folder.mkdir(parents=True, exist_ok=True)
        for first, end in _divide(buffer, unsaved):
            self._write_piece(first, end)
            self._pieces.append((first, end))
        return Manifest(buffer.capacity, oldest, buffer.num_added, buffer.num_collected, tuple(self._pieces))

    def _write_piece(self, first: int, end: int) -> None:
        episodes, held_out = zip(*self._buffer.episodes(first, end))
        arrays: dict[str, Any] = {
            "frames": np.concatenate([part for episode in episodes for part in (episode.earlier, episode.frames)]),
            "action": np.concatenate([episode.action for episode in episodes]),
            "reward": np.concatenate([episode.reward for episode in episodes]),
            "discount": np.concatenate([episode.discount for episode in episodes]),
            "num_steps": np.array([episode.num_steps for episode in episodes]),
            "held_out": np.array(held_out),
        }
        with atomic_file(self._path(first, end)) as file:  # on the disk before the manifest that will name it
            np.savez(file, **arrays)

    def load(self, manifest: Manifest) -> None:
        """Fill an empty buffer. One of less capacity than the saved one keeps the newest episodes.

        Raises:
            UserError: a piece is missing or damaged, or holds episodes of another shape.
        """
        buffer = self._buffer
        assert buffer.num_added == 0
        buffer.num_added, buffer.num_collected = manifest.oldest, manifest.num_collected
        self._pieces = list(manifest.pieces)
        for first, end in manifest.pieces:
            for number, (episode, held_out) in enumerate(self._read_piece(first, end), first):
                if number >= manifest.oldest:
                    buffer.insert(episode, held_out)

    def _read_piece(self, first: int, end: int) -> Iterator[tuple[ReplayEpisode, bool]]:
        path = self._path(first, end)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ARRAYS}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} is part of the saved replay buffer and cannot be read ({error}): bring it back, or begin "
                "anew in another run_dir"
            ) from error
        frame_stack = self._buffer.shape.frame_stack
        rows = np.cumsum(arrays["num_steps"] + 1)[:-1]
        films = np.split(arrays["frames"], np.cumsum(arrays["num_steps"] + frame_stack)[:-1])
        columns = (np.split(arrays[name], rows) for name in ("action", "reward", "discount"))
        for film, action, reward, discount, held_out in zip(films, *columns, arrays["held_out"]):
            yield ReplayEpisode(film[frame_stack - 1 :], film[: frame_stack - 1], action, reward, discount), held_out

    def remove_unreferenced(self, *manifests: Manifest) -> None:
        """Remove files that no present manifest needs."""
        needed = {self._path(first, end) for manifest in manifests for first, end in manifest.pieces}
        for pattern in ("*.npz", f".*{PARTIAL_SUFFIX}"):
            for path in set(self._folder.glob(pattern)) - needed:
                path.unlink()

    def _path(self, first: int, end: int) -> Path:
        return self._folder / f"episodes-{first:09d}-{end:09d}.npz"


def _divide(buffer: ReplayBuffer, unsaved: int) -> Iterator[tuple[int, int]]:
    """Divide unsaved episodes into pieces of about PIECE_ROWS rows each."""
    first, num_rows = unsaved, 0
    for number, (episode, _) in enumerate(buffer.episodes(unsaved, buffer.num_added), unsaved):
        num_rows += episode.num_steps
        if num_rows >= PIECE_ROWS:
            yield first, number + 1
            first, num_rows = number + 1, 0
    if first < buffer.num_added:
        yield first, buffer.num_added
