"""Find the datasets at the path of a data command. Knows folders and formats, and opens no episode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ivideogpt.data.catalog import dataset_info
from ivideogpt.data.formats.episodes import Episodes, Recordings
from ivideogpt.data.formats.folder_index import has_npz_files, npz_files
from ivideogpt.data.formats.registry import find_format
from ivideogpt.errors import UserError
from ivideogpt.flags import REQUIRED, option


@dataclass(frozen=True)
class NamedEpisodes:
    name: str
    episodes: Episodes


@dataclass(frozen=True, kw_only=True)
class EpisodesArgs:
    """Flags of all commands on recorded episodes; each adds its own in a subclass."""

    path: str = option(
        REQUIRED,
        "an .npz episode or demonstration, a folder of them, a folder of such folders, or lerobot:<folder>[@<camera>]",
        positional=True,
    )
    image_key: str | None = option(None, "array that holds the frames (default: the dataset's, or image)")

    def validate(self) -> None:
        """Check the flags of the subclass for contradictions."""

    def find(self) -> list[NamedEpisodes]:
        return find_episodes(self.path, self.image_key)


def find_episodes(path: str, image_key: str | None = None) -> list[NamedEpisodes]:
    """Find the datasets at an ``.npz`` file, a folder of them, a folder of such folders, or a path of another format.

    Args:
        image_key: array of npz files that holds the frames. Default: the one of the dataset with the name of
            the folder, or ``image``.
    """
    if (known := find_format(path)) is not None:
        return [NamedEpisodes(dataset.title, dataset.open()) for dataset in known.datasets(path)]
    place = Path(path)
    if place.is_file():
        return [NamedEpisodes(place.stem, _npz([path], place.parent, image_key))]
    if not place.is_dir():
        raise UserError(f"{path}: no such file or folder; expected an .npz file, a folder of them or lerobot:<folder>")
    found = [
        NamedEpisodes(_name(folder, place), _npz(npz_files(folder), folder, image_key))
        for folder in _folders_with_npz(place, set())
    ]
    if not found:
        raise UserError(f"{path}: no .npz files in it or below; expected <dataset>/*.npz, or lerobot:<folder>")
    return found


def sample(total: int, number: int, seed: int) -> list[int]:
    """Sample ``number`` distinct indices below ``total``, sorted."""
    chosen = np.random.default_rng(seed).choice(total, min(number, total), replace=False)
    return sorted(chosen.tolist())


def _npz(files: list[str], folder: Path, image_key: str | None) -> Recordings:
    return Recordings(files, image_key or dataset_info(folder.resolve().name).image_key)


def _name(folder: Path, root: Path) -> str:
    return root.resolve().name if folder == root else str(folder.relative_to(root))


def _folders_with_npz(folder: Path, seen: set[str]) -> Iterator[Path]:
    """Yield the folder and all below that hold episodes, sorted; each real folder once, as links may form a cycle."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    if has_npz_files(folder):
        yield folder
    below = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    for entry in below:
        yield from _folders_with_npz(entry, seen)
