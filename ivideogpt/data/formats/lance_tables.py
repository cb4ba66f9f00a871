"""Read episodes from Lance tables, on a disk or in an object store. ``datasets/repack.py --format lance`` writes them.

    <uri>/frames.lance      one row a frame, the rows of an episode in a run: episode, frame, image, action, ...
    <uri>/episodes.lance    one row an episode: name, first row, number of rows, checksum of its images

An image is its raw bytes, as decoding 16 JPEG frames takes 6 to 9 times as long as reading them. A window is one
request for its rows, with all columns. Each row says whose it is, so that no row of another episode is taken for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.clips.segments import Indices
from ivideogpt.data.formats.episodes import (
    ACTION_KEY,
    REWARD_KEY,
    SUCCESS_KEY,
    Episode,
    StoredArray,
    chunks,
    pack_strings,
)
from ivideogpt.data.formats.registry import Dataset
from ivideogpt.data.plausible import check_plausible
from ivideogpt.errors import UserError, first_line, require
from ivideogpt.paths import split_paths

PREFIX = "lance:"
FRAMES, EPISODES = "frames.lance", "episodes.lance"
EPISODE, FRAME, IMAGE = "episode", "frame", "image"
SERIES = (ACTION_KEY, REWARD_KEY, SUCCESS_KEY)
FORMAT = 1
WRITER = "datasets/repack.py --format lance"

_NOTE = "ivideogpt"  # key of the schema's metadata
_OPEN_TABLES = 64  # limit per process
_CACHED_BYTES = 256 << 20  # limit of cached places of columns in files, per process
_AGAIN = f"write it again with {WRITER}"

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Contents:
    """Properties that all episodes of a table share: frame size (H, W), and the dimension of each series."""

    frame_size: tuple[int, int]
    series: dict[str, int]
    square_crop: bool = False  # whether the frames were cut to the central square

    def schema(self) -> Any:
        """Return the columns of ``frames.lance``, with these properties as metadata."""
        import pyarrow as pa

        image = {"shape": [*self.frame_size, 3], "dtype": "uint8", "square_crop": self.square_crop}
        note = {"format": FORMAT, IMAGE: image, **{name: {"shape": [size]} for name, size in self.series.items()}}
        columns = [(EPISODE, pa.int64()), (FRAME, pa.int32()), (IMAGE, pa.binary(math.prod(self.frame_size) * 3))]
        columns += [(name, pa.list_(pa.float32(), size)) for name, size in self.series.items()]
        fields = [pa.field(name, kind, nullable=False) for name, kind in columns]
        return pa.schema(fields, {_NOTE: json.dumps(note)})

    @classmethod
    def of_table(cls, uri: str, schema: Any) -> Contents:
        """Read the properties from the schema of ``frames.lance``; UserError if it is another table's."""
        found = ", ".join(schema.names)
        note = (schema.metadata or {}).get(_NOTE.encode())
        if note is None:
            raise UserError(f"{uri}: a Lance table of other columns ({found}); expected one that {WRITER} has written")
        try:
            values = json.loads(note)
            if values.pop("format") != FORMAT:
                raise ValueError(f"format of another version than {FORMAT}")
            image = values.pop(IMAGE)
            height, width, _ = map(int, image["shape"])
            series = {name: int(values[name]["shape"][0]) for name in values}
            contents = cls((height, width), series, bool(image["square_crop"]))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{uri}: its note {note!r} is not understood ({error}); {_AGAIN}") from error
        expected = contents.schema()
        if not schema.equals(expected):
            missing = [name for name in expected.names if name not in schema.names]
            fault = f"no column {missing[0]!r}" if missing else "columns of other types"
            raise UserError(f"{uri}: {fault} among {found}; expected {', '.join(expected.names)}; {_AGAIN}")
        return contents

    def __str__(self) -> str:
        height, width = self.frame_size
        listed = [f"{name} of {size}" for name, size in self.series.items()]
        return ", ".join([f"frames {height}x{width}{' cut to the square' * self.square_crop}", *listed])


def episode_schema() -> Any:
    """Return the columns of ``episodes.lance``."""
    import pyarrow as pa

    kinds = {"name": pa.string(), "start": pa.int64(), "length": pa.int32(), "checksum": pa.uint32()}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def number_of(name: str) -> int:
    """Return the number of an episode in the column ``episode``: a hash, as several processes may append at a time."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little", signed=True)


def checksum(frames: NDArray[np.uint8], before: int = 0) -> int:
    """Return the CRC-32 of these pixels, after those that gave ``before``."""
    return zlib.crc32(frames.tobytes(), before)


# ---- tables


def open_table(uri: str, version: int | None = None) -> Any:
    """Return a version of a table, by default the latest one. It belongs to the process that opened it.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    require("lance", extra="lance")
    import lance

    with _readable(uri, f"expected a table that {WRITER} has written, at {PREFIX}<folder or uri of a data set>"):
        return lance.dataset(uri, version, session=_session(os.getpid()))


@lru_cache(maxsize=1)
def _session(process: int) -> Any:
    import lance

    return lance.Session(index_cache_size_bytes=0, metadata_cache_size_bytes=_CACHED_BYTES)


@lru_cache(maxsize=_OPEN_TABLES)
def _table(process: int, uri: str, version: int) -> Any:
    """Return an open table of this process: a forked one must not use its parent's."""
    return open_table(uri, version)


@contextmanager
def _readable(uri: str, advice: str) -> Iterator[None]:
    """Turn what Lance raises into a UserError that names the table."""
    import pyarrow

    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # a panic of its Rust code is no Exception
        known = isinstance(error, OSError | ValueError | RuntimeError | MemoryError | pyarrow.ArrowException)
        if not known and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{uri}: missing or damaged ({reason(error)}); {advice}") from error


def reason(error: BaseException) -> str:
    """Return what Lance says, without the places in its own code."""
    return first_line(error).partition(", /")[0]


@dataclass(frozen=True)
class FrameTable:
    """One version of ``frames.lance``. Cheap to keep and to pickle: each process opens it for itself."""

    uri: str
    version: int
    num_rows: int
    contents: Contents

    @classmethod
    def open_latest(cls, uri: str) -> FrameTable:
        table = open_table(uri)
        contents = Contents.of_table(uri, table.schema)
        with _readable(uri, _AGAIN):
            return cls(uri, table.version, table.count_rows(), contents)

    def rows(self, numbers: Indices, columns: list[str]) -> Arrays:
        """Read these rows, in increasing order, each column as an array with a row a frame."""
        with _readable(self.uri, _AGAIN):
            found = _table(os.getpid(), self.uri, self.version).take(numbers.tolist(), columns)
            return {name: self._values(name, found.column(name).combine_chunks()) for name in columns}

    def _values(self, name: str, column: Any) -> NDArray[Any]:
        if name == IMAGE:
            width, size = column.type.byte_width, self.contents.frame_size
            pixels = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
            return pixels.reshape(len(column), *size, 3)
        if name in self.contents.series:
            return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        return column.to_numpy(zero_copy_only=False)


# ---- episodes


@dataclass(frozen=True)
class LanceEpisode(Episode):
    """One episode of a table, called uri#name in messages."""

    table: FrameTable
    number: int
    start: int
    length: int
    stored_checksum: int
    _recent: dict[bytes, Arrays] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_frames(self) -> int:
        return self.length

    @property
    def frame_size(self) -> tuple[int, int]:
        return self.table.contents.frame_size

    def dimension(self, name: str) -> int | None:
        return self.table.contents.series.get(name)

    def read(self, indices: Indices) -> NDArray[np.uint8]:
        """Read these frames, and with the same request their series, which are mostly asked for next."""
        self._recent.clear()
        arrays = self._recent[indices.tobytes()] = self._arrays(indices, [IMAGE, *self.table.contents.series])
        return arrays[IMAGE]

    def series(self, name: str) -> NDArray[np.float32] | None:
        return self.series_at(name, np.arange(self.length))

    def series_at(self, name: str, indices: Indices) -> NDArray[np.float32] | None:
        if self.dimension(name) is None:
            return None
        values = (self._recent.get(indices.tobytes()) or self._arrays(indices, [name]))[name]
        check_plausible(values, f"{self.path}: column {name!r}")
        return values

    def content_checksum(self) -> int:
        """Return a CRC-32 of the frames, as noted when they were written, and of the series, which are read for it."""
        found, names = self.stored_checksum, list(self.table.contents.series)
        for values in self._arrays(np.arange(self.length), names).values() if names else ():
            found = zlib.crc32(values.tobytes(), found)
        return found

    def describe(self) -> tuple[StoredArray, ...]:
        series = [StoredArray(name, (size,), "float32", "raw") for name, size in self.table.contents.series.items()]
        return (StoredArray(IMAGE, (*self.frame_size, 3), "uint8", "raw"), *series)

    def verify(self) -> None:
        self.verify_series()
        found = 0
        for indices in chunks(self, self.length):
            found = checksum(self.read(indices), found)
        if found != self.stored_checksum:
            raise UserError(f"{self.path}: its frames are not those that were written; {_AGAIN}")

    def _arrays(self, indices: Indices, columns: list[str]) -> dict[str, NDArray[Any]]:
        distinct, place = np.unique(indices, return_inverse=True)
        arrays = self.table.rows(self.start + distinct, [EPISODE, FRAME, *columns])
        if not (np.array_equal(arrays[FRAME], distinct) and (arrays[EPISODE] == self.number).all()):
            told = f"rows from {self.start} on are of another episode or frame than {EPISODES} says"
            raise UserError(f"{self.path}: {told}; {_AGAIN}")
        return {name: arrays[name][place] for name in columns}


@dataclass(frozen=True, eq=False)
class LanceEpisodes:
    """All episodes of a data set, sorted by name as files are. Holds numbers and names; tables are opened on reading.

    Arrays have an entry an episode. What is appended later is not seen: the version of the table is kept.
    """

    uri: str
    table: FrameTable
    names: NDArray[np.bytes_]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    checksums: NDArray[np.int64]

    @classmethod
    def open_uri(cls, uri: str) -> LanceEpisodes:
        """Read the table of episodes.

        Raises:
            UserError: no data set is there, or its tables are of another kind.
        """
        columns = read_episodes(uri)  # before the frames: rows of an episode are there before it is listed
        table = FrameTable.open_latest(f"{uri}/{FRAMES}")
        # Of an episode that two commands appended at the same time, the first is taken.
        names, first = np.unique(pack_strings(columns.pop("name")), return_index=True)
        if not len(names):
            raise UserError(f"{uri}: no episodes; append some with {WRITER}")
        return cls(uri, table, names, *(column.astype(np.int64)[first] for column in columns.values()))

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> LanceEpisode:
        start, length = int(self.starts[index]), int(self.lengths[index])
        if start < 0 or length < 1 or start + length > self.table.num_rows:
            raise UserError(
                f"{self.name(index)}: {EPISODES} gives it {length} rows from {start} on, and {FRAMES} has "
                f"{self.table.num_rows}; {_AGAIN}"
            )
        number = number_of(os.fsdecode(self.names[index]))
        return LanceEpisode(self.name(index), self.table, number, start, length, int(self.checksums[index]))

    def name(self, index: int) -> str:
        return f"{self.uri}#{os.fsdecode(self.names[index])}"


def read_episodes(uri: str) -> dict[str, Any]:
    """Read ``episodes.lance``: names as a list, other columns as arrays. UserError if it is not such a table."""
    place = f"{uri}/{EPISODES}"
    table = open_table(place)
    if not table.schema.equals(episode_schema()):
        listed = ", ".join(f"{column.name} {column.type}" for column in table.schema)
        expected = ", ".join(f"{column.name} {column.type}" for column in episode_schema())
        raise UserError(f"{place}: columns {listed}; expected {expected}; {_AGAIN}")
    with _readable(place, _AGAIN):
        found = table.to_table()
        numbers = {name: found.column(name).to_numpy() for name in found.column_names if name != "name"}
        return {"name": found.column("name").to_pylist(), **numbers}


# ---- paths


class LanceFormat:
    """Format of ``lance:<uri>[,<uri>...]``. A data set is called by the last part of its uri, as a folder of npz."""

    def matches(self, path: str) -> bool:
        return path.startswith(PREFIX)

    def datasets(self, path: str) -> list[Dataset]:
        listed = split_paths(path.removeprefix(PREFIX), lambda uri: os.path.exists(os.path.expanduser(uri)))
        uris = [uri for uri in (os.path.expanduser(uri).rstrip("/") for uri in listed) if uri]
        names = [dataset_name(uri) for uri in uris]
        if not uris or len(set(names)) < len(names):
            fault = f"two data sets are called {max(names, key=names.count)}" if uris else "no uri"
            raise UserError(
                f"dataset_path {path}: {fault}; expected {PREFIX}<uri>[,<uri>...] with different last parts"
            )
        return [Dataset(name, partial(LanceEpisodes.open_uri, uri), name) for name, uri in zip(names, uris)]


def dataset_name(uri: str) -> str:
    return os.path.basename(uri if "://" in uri else os.path.abspath(uri))
