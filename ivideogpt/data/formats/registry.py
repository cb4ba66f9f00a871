"""Choose the format that reads a path, and find the datasets there. A new format is one class and one `register`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ivideogpt.data.catalog import (
    BENCHMARKED,
    SOMETHING_SOMETHING,
    DatasetPaths,
    Split,
    dataset_info,
    files_by_folder,
    find_files,
    in_split,
    no_episodes,
)
from ivideogpt.data.formats.episodes import Episodes, NpzEpisodes, Recordings, Subset, pack_strings
from ivideogpt.data.formats.npz_arrays import InflatedArrays
from ivideogpt.errors import UserError
from ivideogpt.flags import REQUIRED, option


@dataclass(frozen=True)
class Dataset:
    """A dataset at a path: its name in training, a function that opens its episodes, and a title for reports."""

    name: str
    open: Callable[[], Episodes]
    title: str


class Format(Protocol):
    """A format whose paths determine their datasets."""

    def matches(self, path: str) -> bool:
        """Tell whether this format reads a path of ``--dataset_path`` or ``python -m ivideogpt.data``."""

    def datasets(self, path: str) -> list[Dataset]:
        """List the datasets at the path, at least one. No episode is opened.

        Raises:
            UserError: there is none.
        """


_added: list[Format] = []


def register(new: Format) -> None:
    """Read paths that ``new`` matches with it, ahead of the formats that are known already."""
    _added.insert(0, new)


def find_format(path: object) -> Format | None:
    """Return the format whose paths determine their datasets; None for npz files, where a mix does."""
    from ivideogpt.data.formats.lance_tables import LanceFormat
    from ivideogpt.data.formats.lerobot_paths import LeRobotFormat

    known = (*_added, LeRobotFormat(), LanceFormat())
    return next((each for each in known if isinstance(path, str) and each.matches(path)), None)


def open_episodes(
    name: str,
    split: Split,
    dataset_path: str | None,
    paths: DatasetPaths,
    arrays: InflatedArrays,
    sthsth_root_path: str | None = None,
    min_frames: int = 1,
) -> Episodes:
    """Open a split of a dataset in a mix, by the format of ``dataset_path``, else by the dataset's name.

    Npz files are in ``<dataset_path>/<name>``, or in the folders that DATASET.yaml names.

    Args:
        arrays: cache of what is inflated from npz files.
        min_frames: minimum length of Something-Something videos.
    """
    known = find_format(dataset_path)
    if known is None and name == SOMETHING_SOMETHING:
        from ivideogpt.data.formats.something_something import find_videos

        return find_videos(sthsth_root_path, paths.somethingv2_lists, split, min_frames)
    if known is None:
        files = find_files(name, split, dataset_path, paths)
        return NpzEpisodes(pack_strings(files), dataset_info(name).image_keys, arrays)
    if name == BENCHMARKED:
        raise UserError(f"{name} holds test episodes of a benchmark, which only its npz folder leaves out: give that")
    episodes = next(dataset for dataset in known.datasets(str(dataset_path)) if dataset.name == name).open()
    numbers = in_split(len(episodes), split)
    if not numbers:
        raise UserError(f"{name}: {no_episodes(split, len(episodes))}")
    return Subset(episodes, np.asarray(numbers))


# ---- the datasets at the path of a data command


@dataclass(frozen=True)
class NamedEpisodes:
    name: str
    episodes: Episodes


@dataclass(frozen=True, kw_only=True)
class EpisodesArgs:
    """Flags of all commands on recorded episodes; each adds its own in a subclass."""

    path: str = option(
        REQUIRED,
        "an .npz episode or demonstration, a folder of them, a folder of such folders, lerobot:<folder or hub id>"
        "[@<camera>] or lance:<uri>",
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
        if image_key is not None:
            named = "lerobot:<folder>@<camera> names a camera"
            raise UserError(f"--image_key {image_key} chooses an array of npz files, which {path} has none of; {named}")
        datasets = known.datasets(path)
        names = short_names({dataset.name: dataset.title for dataset in datasets})
        return [NamedEpisodes(names[dataset.name], dataset.open()) for dataset in datasets]

    def npz(files: list[str], folder: Path) -> Recordings:
        return Recordings(files, (image_key,) if image_key else dataset_info(folder.resolve().name).image_keys)

    place = Path(path)
    if place.is_file():
        return [NamedEpisodes(place.stem, npz([path], place.parent))]
    if not place.is_dir():
        raise UserError(
            f"{path}: no such file or folder; expected an .npz file, a folder of them, lerobot:<folder> or lance:<uri>"
        )
    found = [
        NamedEpisodes(
            place.resolve().name if folder == place else str(folder.relative_to(place)),
            npz(list(map(str, files)), folder),
        )
        for folder, files in files_by_folder(place, {".npz"}).items()
    ]
    if not found:
        raise UserError(
            f"{path}: no .npz files in it or below; expected <dataset>/*.npz, lerobot:<folder> or lance:<uri>"
        )
    return found


def short_names(short: Mapping[str, str]) -> dict[str, str]:
    """Return the short name of each whole one, or the whole one where several have the same short name."""
    number = Counter(short.values())
    return {name: title if number[title] == 1 else name for name, title in short.items()}


def sample(total: int, number: int, seed: int) -> list[int]:
    """Sample ``number`` distinct indices below ``total``, sorted."""
    chosen = np.random.default_rng(seed).choice(total, min(number, total), replace=False)
    return sorted(chosen.tolist())
