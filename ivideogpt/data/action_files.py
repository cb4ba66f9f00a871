"""Tables of actions beside videos: csv and npy files. Knows rows and columns, and which row goes with which frame."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ivideogpt.errors import UserError

SUFFIXES = (".csv", ".npy")

_DELIMITERS = ",;\t"
# Columns of logs that are no commands. Taken for actions they would train a model that nothing can steer.
_NO_ACTIONS = {"", "t", "time", "timestamp", "timestamps", "frame", "frame_index", "index", "step", "episode", "id"}

Actions = NDArray[np.float32]


def find_action_file(video: Path) -> Path | None:
    """The file of the video's name beside it."""
    found = [path for suffix in SUFFIXES if (path := video.with_suffix(suffix)).is_file()]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1].name}: two files of actions for one video; remove one of them")
    return found[0] if found else None


def read_actions(path: Path, columns: Sequence[str] = ()) -> Actions:
    """The chosen columns (rows, D) in the order given, by their names or by number from 0; without any, all of them.

    Raises:
        UserError: the file is no table of numbers, or has no such column.
    """
    values = _read_npy(path, columns) if path.suffix == ".npy" else _read_csv(path, columns)
    if not len(values):
        raise UserError(f"{path}: holds no rows; expected one row of actions a frame")
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise UserError(f"{path}: holds NaN or infinite values (first in row {row}); repair or leave out the episode")
    return values


def _read_npy(path: Path, columns: Sequence[str]) -> Actions:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not an npy file of numbers ({error}); save it with numpy.save") from error
    if not isinstance(values, np.ndarray) or values.ndim not in (1, 2) or values.dtype.kind not in "fiub":
        kind = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise UserError(f"{path}: is {kind}; expected numbers of shape (N, D), one row a frame")
    table = values.reshape(len(values), -1)
    return table[:, _chosen(path, columns, [], table.shape[1])].astype(np.float32)


def _read_csv(path: Path, columns: Sequence[str]) -> Actions:
    rows = _cells(path)
    header = [] if all(map(_is_number, rows[0])) else rows[0]
    table = rows[1:] if header else rows
    chosen = _chosen(path, columns, header, len(rows[0]))
    values = np.empty((len(table), len(chosen)), np.float32)
    for i, row in enumerate(table):
        if len(row) != len(rows[0]):
            raise UserError(f"{path}: row {i} has {len(row)} cells, expected {len(rows[0])} as in the first line")
        for j, column in enumerate(chosen):
            if not _is_number(row[column]):
                name = header[column] if header else column
                raise UserError(
                    f"{path}: row {i} of column {name} is {row[column]!r}, no number; correct it, "
                    "or choose the columns that are actions with --action_columns"
                )
            values[i, j] = float(row[column])
    return values


def _cells(path: Path) -> list[list[str]]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable text file ({error}); save it as csv in UTF-8") from error
    if not lines:
        raise UserError(f"{path}: is empty; expected one row of actions a frame")
    lines[0] = lines[0].removeprefix("#")  # numpy.savetxt comments its header out
    delimiter = max(_DELIMITERS, key=lines[0].count)
    if delimiter not in lines[0]:
        return [line.split() for line in lines]
    return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _chosen(path: Path, columns: Sequence[str], header: list[str], width: int) -> list[int]:
    if columns:
        return [_column(path, name, header, width) for name in columns]
    suspects = [name for name in header if name.lower() in _NO_ACTIONS]
    if suspects:
        raise UserError(
            f"{path}: column {suspects[0]!r} does not look like an action; choose the columns that are with "
            f"--action_columns, out of {','.join(header)}"
        )
    return list(range(width))


def _column(path: Path, name: str, header: list[str], width: int) -> int:
    if name in header:
        return header.index(name)
    if name.isdecimal() and int(name) < width:
        return int(name)
    known = f"{', '.join(header)}, or numbers" if header else "numbers"
    raise UserError(f"{path}: no column {name!r}; it has {width} columns, called {known} from 0 to {width - 1}")


@dataclass(frozen=True)
class Alignment:
    """Which frames of a video have actions: those from ``first`` to ``last``, row ``frame + offset`` belonging to each.

    One more frame may follow, which the last action leads to.
    """

    first: int
    last: int
    offset: int

    @classmethod
    def find(cls, num_frames: int, num_rows: int, offset: int) -> Alignment:
        """Raises UserError unless there are as many rows as frames, or one less, before or after the offset."""
        fitting = {num_frames, num_frames - 1, num_frames + offset, num_frames - 1 + offset}
        if num_rows not in fitting:
            raise UserError(
                f"{num_rows} rows of actions for {num_frames} frames; expected {num_frames}, or {num_frames - 1} "
                "without the last; row i is what was done at frame i: cut the video or the table so that they agree, "
                "or give --action_offset 1 if row i is the command that led to frame i"
            )
        first, last = max(-offset, 0), min(num_frames, num_rows - offset) - 1
        if last < first:
            raise UserError(f"no frame has an action: {num_rows} rows, {num_frames} frames, --action_offset {offset}")
        return cls(first, last, offset)
