"""Formats of recorded episodes: which one reads a path. Another format is one class and one call of `register`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ivideogpt.data.formats.episodes import Episodes


@dataclass(frozen=True)
class Dataset:
    """A data set at a path: the name that training knows it by, how its episodes are opened, a title for reports."""

    name: str
    open: Callable[[], Episodes]
    title: str


class Format(Protocol):
    def matches(self, path: str) -> bool:
        """Whether this format reads the path, as it is given to ``--dataset_path`` or ``python -m ivideogpt.data``."""

    def datasets(self, path: str) -> list[Dataset]:
        """List the data sets at the path, at least one. Nothing is opened.

        Raises:
            UserError: there is none.
        """


_added: list[Format] = []


def register(new: Format) -> None:
    """Read paths that ``new`` matches with it, ahead of the formats that are known already."""
    _added.insert(0, new)


def find_format(path: object) -> Format | None:
    """Return the format whose paths list their data sets themselves; None for npz files, which a mix chooses from."""
    from ivideogpt.data.formats.lerobot import LeRobotFormat

    known = (*_added, LeRobotFormat())
    return next((each for each in known if isinstance(path, str) and each.matches(path)), None)
