"""Formats of recorded episodes: which one reads a path. Another format is one class and one call of `register`."""

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
    """A data set at a path: the name that training knows it by, how its episodes are opened, a title for reports."""

    name: str
    open: Callable[[], Episodes]
    title: str


class Format(Protocol):
    """A format whose paths list their data sets themselves."""

    def matches(self, path: str) -> bool:
        """Whether this format reads the path, as it is given to ``--dataset_path`` or ``python -m ivideogpt.data``."""

    def datasets(self, path: str) -> list[Dataset]:
        """List the data sets at the path, at least one. Nothing is opened.

        Raises:
            UserError: there is none.
        """


@dataclass(frozen=True)
class Query:
    """A split of a data set that a mix names, and where its files may be."""

    name: str
    split: Split
    dataset_path: str | None
    paths: DatasetPaths
    arrays: InflatedArrays
    sthsth_root_path: str | None = None
    min_frames: int = 1  # of videos of Something-Something


class NamedFormat(Protocol):
    """A format whose data sets are known by name, and come with splits of their own."""

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
    """Return the format whose paths list their data sets themselves; None for npz files, which a mix chooses from."""
    from ivideogpt.data.formats.lerobot import LeRobotFormat

    known = (*_added, LeRobotFormat())
    return next((each for each in known if isinstance(path, str) and each.matches(path)), None)


def open_episodes(query: Query) -> Episodes:
    """Open the episodes that training asks for: of the format of ``dataset_path``, else of the data set's name."""
    from ivideogpt.data.formats.something_something import SomethingSomethingFormat

    known = find_format(query.dataset_path)
    if known is None:
        formats: tuple[NamedFormat, ...] = (SomethingSomethingFormat(), NpzFormat())  # the last one knows all names
        return next(found for each in formats if (found := each.episodes(query)) is not None)
    datasets = known.datasets(str(query.dataset_path))
    episodes = next(dataset for dataset in datasets if dataset.name == query.name).open()
    numbers = in_split(len(episodes), query.split)
    if not numbers:
        raise UserError(f"{query.name}: {no_episodes(query.split, len(episodes))}")
    return subset(episodes, numbers)
