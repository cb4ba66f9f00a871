"""Read rows of parquet files by row group. Knows columns of numbers, pictures and texts; no episodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.clips.segments import Indices
from ivideogpt.data.formats.npz_arrays import RecentArrays
from ivideogpt.errors import UserError, first_line

_OPEN_FILES = 64  # limit per process; files are memory-mapped
_CACHED_BYTES = 64 << 20  # limit of cached numeric columns per process
_MOST_ROWS = 1 << 27  # limit per file: a damaged one may claim any number
_PICTURES_AT_ONCE = 32  # rows in memory at a time

_recent = RecentArrays(_CACHED_BYTES)


def numbers(path: str, name: str, dimension: int = 1, first: int = 0, count: int | None = None) -> NDArray[Any]:
    """Read rows of a column as (n, dimension), read-only: ``count`` from ``first`` on, or all.

    Raises:
        UserError: the file is missing or damaged, or the column is missing or of another kind.
    """
    file, version = _file(path)
    parts = []
    for group, own in file.groups(first, file.num_rows if count is None else first + count):
        key = (*version, name, group, dimension)
        values = _recent.get(key)
        if values is None:
            values = file.column(name, group, dimension)
            _recent.put(key, values)
        parts.append(values[own])
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.zeros((0, dimension))])
    if count is not None and len(rows) != count:
        raise _damaged(path, f"it ends after {len(rows)} of {count} rows")
    return rows


def pictures(path: str, name: str, rows: Indices) -> list[bytes]:
    """Read encoded pictures of a column of ``{bytes, path}`` at these rows, in increasing order."""
    file, _ = _file(path)
    if rows[-1] >= file.num_rows:
        raise _damaged(path, f"it has {file.num_rows} rows, row {rows[-1]} is asked for")
    found: list[bytes] = []
    for group, own in file.groups(int(rows[0]), int(rows[-1]) + 1):
        own_rows = rows - file.starts[group]
        found += file.pictures(name, group, own_rows[(own_rows >= own.start) & (own_rows < own.stop)])
    return found


def texts(path: str, *names: str) -> list[str]:
    """Read the first of these columns that the file has, which holds texts."""
    file, _ = _file(path)
    return file.texts(next((name for name in names if file.has(name)), names[0]))


def rows_holding(path: str, name: str, value: int) -> tuple[int, int]:
    """Find the first row and the number of rows with this value in a column of integers; (0, 0) without any.

    Raises:
        UserError: the rows are not contiguous, or as in :func:`numbers`.
    """
    values, starts, counts = _file(path)[0].runs(name)
    found = np.flatnonzero(values == value)
    if len(found) > 1:
        raise UserError(f"{path}: the rows with {name} {value} do not lie together; record the folder again")
    return (int(starts[found[0]]), int(counts[found[0]])) if len(found) else (0, 0)


class _ParquetFile:
    """An open parquet file."""

    def __init__(self, path: str) -> None:
        import pyarrow.parquet

        self.path = path
        with self._readable():
            # One thread, no prefetching: loaders run one process per core and read a few rows at a time.
            # An absolute path, as a colon in a relative one would be parsed as a protocol.
            self._file = pyarrow.parquet.ParquetFile(os.path.abspath(path), memory_map=True, pre_buffer=False)
            self._columns = set(self._file.schema_arrow.names)
            metadata = self._file.metadata
            counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if min(counts, default=0) < 0 or sum(counts) > _MOST_ROWS:
            raise _damaged(path, f"it claims {sum(counts)} rows")
        self.starts = np.cumsum([0, *counts])  # first rows of the groups, and the end of the last
        self._runs: dict[str, tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]] = {}

    @property
    def num_rows(self) -> int:
        return int(self.starts[-1])

    def groups(self, first: int, last: int) -> Iterator[tuple[int, slice]]:
        """Yield the row groups that overlap ``first .. last - 1``, with the slice of their own rows."""
        last = min(last, self.num_rows)
        if first >= last:
            return
        begin, end = np.searchsorted(self.starts, [first, last - 1], side="right") - 1
        for group in range(begin, end + 1):
            start, stop = int(self.starts[group]), int(self.starts[group + 1])
            yield group, slice(max(first, start) - start, min(last, stop) - start)

    def column(self, name: str, group: int, dimension: int) -> NDArray[Any]:
        """Read a column of numbers, or of lists of ``dimension`` numbers, as (n, dimension)."""
        self._check(name)
        with self._readable():
            column = self._file.read_row_group(group, columns=[name], use_threads=False).column(name)
            return _as_rows(column, self.path, name, dimension)

    def runs(self, name: str) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
        """Return value, first row and number of rows of each run of equal values in a column."""
        if name not in self._runs:
            self._check(name)
            with self._readable():
                column = self._file.read(columns=[name], use_threads=False).column(name)
                values = _as_rows(column, self.path, name, 1)[:, 0]
            starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else np.zeros(0, int)
            self._runs[name] = values[starts], starts, np.diff(np.append(starts, len(values)))
        return self._runs[name]

    def pictures(self, name: str, group: int, rows: Indices) -> list[bytes]:
        """Read pictures at these rows of a group, a few rows at a time: a group may hold gigabytes."""
        import pyarrow.types

        self._check(name)
        kind = self._file.schema_arrow.field(name).type
        if not pyarrow.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise UserError(f"{self.path}: column {name!r} holds {kind}; expected pictures, as meta/info.json says")
        found: list[bytes | None] = []
        start = 0
        with self._readable():
            for batch in self._file.iter_batches(_PICTURES_AT_ONCE, [group], columns=[name], use_threads=False):
                here = rows[(rows >= start) & (rows < start + len(batch))] - start
                found += [picture and picture["bytes"] for picture in batch.column(name).take(here).to_pylist()]
                start += len(batch)
                if not len(rows) or start > rows[-1]:
                    break
        stored = [picture for picture in found if isinstance(picture, bytes)]
        if len(stored) != len(rows):
            raise UserError(f"{self.path}: pictures of {name!r} are missing or lie outside of it; store them inside")
        return stored

    def has(self, name: str) -> bool:
        return name in self._columns

    def texts(self, name: str) -> list[str]:
        self._check(name)
        with self._readable():
            values = self._file.read(columns=[name], use_threads=False).column(name).to_pylist()
        if not all(isinstance(value, str) for value in values):
            raise UserError(f"{self.path}: column {name!r} holds other than texts; copy the folder again")
        return values

    def _check(self, name: str) -> None:
        if name not in self._columns:
            raise UserError(f"{self.path}: no column {name!r}; copy the folder again")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        import pyarrow

        try:
            yield
        except UserError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            raise _damaged(self.path, first_line(error)) from error


def _file(path: str) -> tuple[_ParquetFile, tuple[str, int, int]]:
    """Return the open file, and a key that changes with the file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise _damaged(path, error.strerror) from error
    version = (path, status.st_mtime_ns, status.st_size)
    return _open(*version), version


@lru_cache(maxsize=_OPEN_FILES)
def _open(path: str, modified: int, size: int) -> _ParquetFile:
    return _ParquetFile(path)


def _as_rows(column: Any, path: str, name: str, dimension: int) -> NDArray[Any]:
    """Return a column as (n, dimension). Lists of one level are all of one length, or numbers would change rows."""
    import pyarrow

    values, uneven = column.combine_chunks(), False
    while isinstance(values, pyarrow.ListArray | pyarrow.LargeListArray | pyarrow.FixedSizeListArray):
        uneven = uneven or len(values.value_lengths().unique()) > 1
        values = values.flatten()
    flat = values.to_numpy(zero_copy_only=False)
    if uneven or flat.dtype.kind not in "fiub" or flat.size != len(column) * dimension:
        raise UserError(
            f"{path}: column {name!r} holds {flat.size} values ({flat.dtype}) in {len(column)} rows"
            f"{', unevenly many in each' * uneven}; "
            f"expected {dimension} numbers a row, as meta/info.json says"
        )
    rows: NDArray[Any] = flat.reshape(len(column), dimension)
    return rows


def _damaged(path: str, reason: object) -> UserError:
    return UserError(f"{path}: missing, truncated or not a parquet file ({reason}); copy the folder again")
