"""Choose the format that reads a path. A new format is one class and one call of `register`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ivideogpt.data.catalog import DatasetPaths, EpisodeFinder, Split, dataset_info, in_split, no_episodes
from ivideogpt.data.formats.episodes import Episodes, NpzEpisodes, pack_strings, subset
from ivideogpt.data.formats.npz_arrays import InflatedArrays
from ivideogpt.errors import UserError


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


@dataclass(frozen=True)
class Query:
    """A split of a dataset in a mix, and the folders that may hold its files."""

    name: str
    split: Split
    dataset_path: str | None
    paths: DatasetPaths
    arrays: InflatedArrays
    sthsth_root_path: str | None = None
    min_frames: int = 1  # minimum length of Something-Something videos


class NamedFormat(Protocol):
    """A format whose datasets are known by name, with their own splits."""

    def episodes(self, query: Query) -> Episodes | None:
        """Return the episodes; None for a name of another format.

        Raises:
            UserError: naming the folder or the key of DATASET.yaml without which there are none.
        """


class NpzFormat:
    """Npz files in ``<dataset_path>/<name>``, or in the folders that DATASET.yaml names."""

    def episodes(self, query: Query) -> NpzEpisodes:
        find = EpisodeFinder(Path(query.dataset_path) if query.dataset_path else None, query.paths)
        files = pack_strings(find(query.name, query.split))
        return NpzEpisodes(files, dataset_info(query.name).image_key, query.arrays)


_added: list[Format] = []


def register(new: Format) -> None:
    """Read paths that ``new`` matches with it, ahead of the formats that are known already."""
    _added.insert(0, new)


def find_format(path: object) -> Format | None:
    """Return the format whose paths determine their datasets; None for npz files, where a mix does."""
    from ivideogpt.data.formats.lerobot import LeRobotFormat

    known = (*_added, LeRobotFormat())
    return next((each for each in known if isinstance(path, str) and each.matches(path)), None)


def open_episodes(query: Query) -> Episodes:
    """Open the episodes of a query by the format of ``dataset_path``, else by the dataset's name."""
    from ivideogpt.data.formats.something_something import SomethingSomethingFormat

    known = find_format(query.dataset_path)
    if known is None:
        formats: tuple[NamedFormat, ...] = (SomethingSomethingFormat(), NpzFormat())  # the last one accepts every name
        return next(found for each in formats if (found := each.episodes(query)) is not None)
    datasets = known.datasets(str(query.dataset_path))
    episodes = next(dataset for dataset in datasets if dataset.name == query.name).open()
    numbers = in_split(len(episodes), query.split)
    if not numbers:
        raise UserError(f"{query.name}: {no_episodes(query.split, len(episodes))}")
    return subset(episodes, numbers)
