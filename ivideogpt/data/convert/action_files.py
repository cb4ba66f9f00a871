"""Tables of actions beside videos: csv and npy files. Knows rows and columns, and which row goes with which frame."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.formats.npz_arrays import npy_array
from ivideogpt.data.plausible import check_plausible
from ivideogpt.errors import UserError

SUFFIXES = (".csv", ".npy")

_DELIMITERS = ",;\t"
# Words in the names of logged columns that are not actions.
_TIME_WORDS = {"secs", "sec", "nsec", "nsecs", "msec", "usec", "seconds", "millis", "date", "clock", "utc", "elapsed"}
_TIME_ENDINGS = ("time", "timestamp", "timestamps", "stamp", "stamps")
_COUNTER_WORDS = {
    *("t", "frame", "frames", "index", "idx", "step", "steps", "episode", "id", "number", "num", "no", "nr", "seq"),
    *("row", "count", "counter", "sample", "task", "header"),
}
_UNITS = {"s", "ms", "us", "ns"}
# Words in the names of actions: such a column may change steadily, as for an arm that moves along a line.
_ACTION_WORDS = {
    *(sign + axis for sign in ("", "d", "v") for axis in "xyz"),
    *("a", "act", "action", "actions", "joint", "grip", "gripper", "roll", "pitch", "yaw"),
}
_HUGE = 1e8  # below timestamps in seconds since 1970
_MIN_STEPS, _STEADY = 5, 1e-4  # number of equal differences between rows, and their relative tolerance
_CERTAIN_HEADER = 3  # columns; an action may well be 0 or 0,1
_SHOWN = 40  # characters of a cell quoted in a message

Actions = NDArray[np.float32]


@dataclass(frozen=True)
class ActionTable:
    """Actions (rows, D), and how the file was read.

    Attributes:
        names: names of the columns of the actions; where there is no header, their numbers from 0.
        left_out: names or numbers of the columns that were not chosen.
        header: the line that was read as names; empty without one.
    """

    path: Path
    actions: Actions
    names: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    header: str = ""

    def ordered(self, names: tuple[str, ...]) -> Actions:
        """Return the actions with their columns in the order of these names. UserError unless it has just these."""
        if names == self.names:
            return self.actions
        if sorted(names) != sorted(self.names) or len(set(names)) < len(names):
            raise UserError(
                f"{self.path}: its actions are {','.join(self.names)}; expected {','.join(names)} in any order, as in "
                "the first table; columns without a header are called by their numbers"
            )
        return self.actions[:, [self.names.index(name) for name in names]]


def read_actions(path: Path, columns: Sequence[str] = ()) -> ActionTable:
    """Read the chosen columns in the order given, by their names or by number from 0; without any, all of them.

    Raises:
        UserError: the file is no table of numbers, has no such column, or no column was chosen and one looks like
            time or a counter.
    """
    header: list[str] = []
    if path.suffix == ".npy":
        array = npy_array(str(path))
        if len(array.shape) not in (1, 2) or array.dtype.kind not in "fiub":
            raise UserError(f"{path}: is {array.dtype} of shape {array.shape}; expected numbers of shape (N, D)")
        table = array.all()
        table = table.reshape(len(table), -1) if table.size else np.empty((0, 1))
    else:
        header, table = _read_csv(path)
    width = table.shape[1]
    if not table.size:
        raise UserError(f"{path}: holds no rows; expected one row of actions a frame")
    names = header or [str(column) for column in range(width)]
    chosen = [_column(path, name, header, width) for name in columns] or list(range(width))
    values = np.stack([_numbers(path, names[column], table[:, column]) for column in chosen], axis=1)
    if not columns:
        _refuse_logs(path, names if header else [], values)
    check_plausible(values, str(path))
    left_out = tuple(name for column, name in enumerate(names) if column not in chosen)
    chosen_names = tuple(names[column] for column in chosen)
    return ActionTable(path, values.astype(np.float32), chosen_names, left_out, ",".join(header))


def _read_csv(path: Path) -> tuple[list[str], NDArray[Any]]:
    """Read the names of the columns, none without a header, and the cells (rows, D) as strings."""
    rows = _cells(path)
    has_header = not all(map(_is_number, rows[0])) or _is_numeric_header(path, rows)
    header, body = (rows[0], rows[1:]) if has_header else ([], rows)
    for i, row in enumerate(body):
        if len(row) != len(rows[0]):
            raise UserError(f"{path}: row {i} has {len(row)} cells, expected {len(rows[0])} as in the first line")
    return header, np.array(body, object).reshape(len(body), len(rows[0]))


def _is_numeric_header(path: Path, rows: list[list[str]]) -> bool:
    """Tell whether the first line holds the names 0, 1, 2, ... that pandas gives to unnamed columns.

    Raises:
        UserError: the line may also be an action.
    """
    if rows[0] != [str(column) for column in range(len(rows[0]))] or len(rows) == 1:
        return False
    others_whole = any(cell.lstrip("+-").isdecimal() for row in rows[1:] for cell in row)
    if len(rows[0]) >= _CERTAIN_HEADER and not others_whole:
        return True
    raise UserError(
        f"{path}: the first line {','.join(rows[0])} may be a header or an action; write a header with names above "
        "the numbers, such as x,y"
    )


def _cells(path: Path) -> list[list[str]]:
    """Read the lines as cells. Empty lines at the end are ignored.

    Every second line may be empty, as where csv was written on Windows with line ends of its own. Any other empty line
    is an error: it may be a lost row, without which all later ones would belong to the frame before theirs.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable text file ({error}); save it as csv in UTF-8") from error
    filled = [bool(line.strip()) for line in lines]
    while filled and not filled[-1]:
        filled.pop()
    lines = lines[: len(filled)]
    if not lines:
        raise UserError(f"{path}: is empty; expected one row of actions a frame")
    if filled == [True, False] * (len(lines) // 2) + [True]:
        lines = lines[::2]
    elif False in filled:
        raise UserError(
            f"{path}: line {filled.index(False) + 1} is empty, but rows come after it; fill in the row that was lost, "
            "or remove the line if none was"
        )
    lines[0] = lines[0].removeprefix("#")  # numpy.savetxt comments its header out
    delimiter = max(_DELIMITERS, key=lines[0].count)
    if delimiter not in lines[0]:
        return [line.split() for line in lines]
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    except csv.Error as error:
        raise UserError(f"{path}: not a readable table ({error}); save it as csv in UTF-8") from error


def _numbers(path: Path, name: str, cells: NDArray[Any]) -> NDArray[np.float64]:
    """Convert one column to numbers."""
    if cells.dtype == object:
        for i, cell in enumerate(cells):
            if not _is_number(cell):
                raise UserError(
                    f"{path}: row {i} of column {name} is {cell[:_SHOWN]!r}, no number; correct it, "
                    "or choose the columns that are actions with --action_columns"
                )
    return cells.astype(np.float64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python accepts 1_000, but no other program writes it


def _refuse_logs(path: Path, names: list[str], values: NDArray[np.float64]) -> None:
    """Raise UserError if a column is time or a counter: a model trained on them as actions cannot be steered."""
    # whether a column changes by the same from every row to the next, as counters and clocks do
    changes = np.diff(values, axis=0).T if len(values) > _MIN_STEPS else np.zeros((values.shape[1], 1))
    steady = [bool(own[0]) and np.allclose(own, own.mean(), rtol=_STEADY, atol=0) for own in changes]
    for column, numbers in enumerate(values.T):
        largest = np.abs(numbers).max()
        if names and is_log_name(names[column]):
            reason = "is named like time or a counter"
        elif np.isfinite(largest) and largest > _HUGE:
            reason = f"reaches {largest:.3g}"
        elif steady[column] and not all(steady) and _ACTION_WORDS.isdisjoint(_words(names[column]) if names else ()):
            reason = f"changes by {numbers[1] - numbers[0]:.3g} from every row to the next"
        else:
            continue
        name = names[column] if names else str(column)
        raise UserError(
            f"{path}: column {name!r} does not look like an action, it {reason}; "
            f"choose the columns that are with --action_columns, out of {','.join(names) or f'0 to {len(steady) - 1}'}"
        )


def is_log_name(name: str) -> bool:
    """Tell whether this is a usual name of a time or a counter."""
    words = _words(name)
    if not words:
        return not name.strip()
    if any(word in _TIME_WORDS or word.endswith(_TIME_ENDINGS) for word in words):
        return True
    counts = set(words) <= _COUNTER_WORDS | _UNITS and not set(words) <= _UNITS
    return words[0] == "unnamed" or (counts and not any(map(str.isdecimal, name)))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _column(path: Path, name: str, header: list[str], width: int) -> int:
    if name in header:
        return header.index(name)
    if name.isdecimal() and int(name) < width:
        return int(name)
    known = f"{', '.join(header)}, or numbers" if header else "numbers"
    raise UserError(f"{path}: no column {name!r}; it has {width} columns, called {known} from 0 to {width - 1}")


def last_with_action(num_frames: int, num_rows: int, offset: int) -> int:
    """Return the last frame of a video that has an action; frame i has row ``i + offset``.

    One more frame may follow, the result of the last action.

    Raises:
        UserError: there are neither as many rows as frames nor one less, or no frame has an action.
    """
    if num_rows not in {num_frames, num_frames - 1, num_frames + offset, num_frames - 1 + offset}:
        raise UserError(
            f"{num_rows} rows of actions for {num_frames} frames; expected {num_frames}, or {num_frames - 1} "
            "without the last; row i is what was done at frame i: cut the video or the table so that they agree, "
            "or give --action_offset 1 if row i is the command that led to frame i"
        )
    last = min(num_frames, num_rows - offset) - 1
    if last < max(-offset, 0):
        raise UserError(f"no frame has an action: {num_rows} rows, {num_frames} frames, --action_offset {offset}")
    return last
