"""Action spaces of the datasets at a path: those whose actions look alike share one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ivideogpt.action_spaces import ActionSpace, ActionSpaces, usable_std
from ivideogpt.data.formats.registry import short_names
from ivideogpt.errors import UserError
from ivideogpt.files import check_folder_can_be_written

if TYPE_CHECKING:
    from ivideogpt.data.inspect.command import DatasetReport

MAX_STD_RATIO = 2  # within one space


def check_new_file(file: Path) -> None:
    """Raise UserError unless the file can be written and is not there yet: users edit it."""
    if file.exists():
        raise UserError(f"--write_action_spaces: {file} exists; name a new file, or remove it")
    check_folder_can_be_written(file.parent, "--write_action_spaces")


def share_spaces(reports: Sequence[DatasetReport]) -> ActionSpaces:
    """Put datasets into spaces, named after the first dataset of each; those without actions are left out.

    Raises:
        UserError: no dataset has actions.
    """
    names = _dataset_names(reports)
    groups: list[list[DatasetReport]] = []
    for report in reports:
        if report.actions:
            alike = next((group for group in groups if _are_alike(group[0], report)), None)
            groups.append([report]) if alike is None else alike.append(report)
    if not groups:
        raise UserError("no dataset has actions, so there are no action spaces to write")
    return ActionSpaces(tuple(_space(group, [names[report.name] for report in group]) for group in groups))


def _dataset_names(reports: Sequence[DatasetReport]) -> dict[str, str]:
    """Return the name of each dataset in an action space: that of its folder, or the whole one if several have that."""
    return short_names({report.name: report.name.rpartition("/")[2] for report in reports})


def _are_alike(one: DatasetReport, other: DatasetReport) -> bool:
    """Tell whether dimensions, meanings, means (to one std) and stds (to a factor of 2) agree."""
    if len(one.actions) != len(other.actions) or len({one.action_names, other.action_names} - {None}) > 1:
        return False
    return all(
        abs(a.mean - b.mean) <= max(a.std, b.std) <= MAX_STD_RATIO * min(a.std, b.std)
        for a, b in zip(one.actions, other.actions, strict=True)
    )


def _space(group: Sequence[DatasetReport], names: Sequence[str]) -> ActionSpace:
    """Join datasets with equal weights, as a mix has them, however long they are."""
    means, stds = [], []
    for columns in zip(*(report.actions for report in group), strict=True):
        mean = sum(column.mean for column in columns) / len(columns)
        variance = sum(column.std**2 + (column.mean - mean) ** 2 for column in columns) / len(columns)
        means.append(mean)
        stds.append(usable_std(math.sqrt(variance), max(abs(end) for each in columns for end in (each.min, each.max))))
    dimensions = next((report.action_names for report in group if report.action_names), None)
    return ActionSpace(names[0], len(means), tuple(means), tuple(stds), dimensions, tuple(names))


def table(spaces: ActionSpaces, reports: Sequence[DatasetReport]) -> str:
    """Return the spaces as text, with the range of each dimension over the datasets of its space."""
    names = _dataset_names(reports)
    by_name = {names[report.name]: report for report in reports}
    lines = [f"{'action space':<28}{'mean':>10}{'std':>10}{'min':>10}{'max':>10}"]
    for space in spaces.spaces:
        lines.append(f"{space}: {', '.join(space.datasets)}")
        lines += _rows(space, [by_name[name] for name in space.datasets])
    return "\n".join(lines)


def _rows(space: ActionSpace, reports: Sequence[DatasetReport]) -> Iterator[str]:
    assert space.mean is not None
    assert space.std is not None
    for i, (mean, std) in enumerate(zip(space.mean, space.std, strict=True)):
        called = f"  {i} {space.dimensions[i] if space.dimensions else ''}"
        low, high = min(report.actions[i].min for report in reports), max(report.actions[i].max for report in reports)
        yield f"{called:<28}{mean:>10.4g}{std:>10.4g}{low:>10.4g}{high:>10.4g}"
