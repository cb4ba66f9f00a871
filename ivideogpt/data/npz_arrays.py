"""Arrays inside npz files, read in part. Knows zip and npy; knows nothing of episodes.

Uncompressed arrays are read through a memory map at their place inside the zip, compressed ones by inflating no further
than the last row needed. Nothing is ever unpickled, and no size is believed that the file cannot hold.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ivideogpt.errors import UserError

_LOCAL_HEADER = struct.Struct("<26xHH")  # ends with the lengths of the file name and of the extra field
_CACHED_DIRECTORIES = 4096  # of npz files, kept per process, about 2 KB each
MAX_DEFLATE_RATIO = 1032  # no deflated stream is smaller: a larger claim is a forged size
_BOMB_RATIO, _BOMB_BYTES = 200, 1 << 30  # recorded video of this size never compresses so well
# What zipfile and zlib raise for damaged files: NotImplementedError for versions, RuntimeError for encryption.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError, ValueError, OverflowError)


@dataclass(frozen=True)
class NpzMember:
    """One array inside an npz file: where its values start and what they are."""

    path: str
    modified: int  # ns: of another one, anything kept is out of date
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    header_length: int
    data_offset: int | None  # of the values within the file; None if they are compressed

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def mapped(self) -> NDArray[Any]:
        """The whole array as a view of the file. It must not be compressed."""
        assert self.data_offset is not None
        # A plain mmap: numpy.memmap costs as much again as reading a window does.
        try:
            with open(self.path, "rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return np.ndarray(
                self.shape, self.dtype, content, self.data_offset, order="F" if self.fortran_order else "C"
            )
        except OSError as error:
            raise unreadable(self.path, error) from error
        except (TypeError, ValueError) as error:  # the file has become shorter
            raise _damaged(self.path, error) from error

    def all(self) -> NDArray[Any]:
        """The whole array, as a new one or read-only."""
        if self.data_offset is not None:
            return np.array(self.mapped())
        with self._inflating() as stream:
            values = np.frombuffer(self._next(stream, self.num_bytes), self.dtype)
        return values.reshape(self.shape[::-1]).T if self.fortran_order else values.reshape(self.shape)

    def beginning(self, num_rows: int) -> NDArray[Any]:
        """The first rows, inflated. Not of an array in Fortran order, whose rows are spread over the whole stream."""
        with self._inflating() as stream:
            values = np.frombuffer(self._next(stream, num_rows * self.row_bytes), self.dtype)
        return values.reshape(num_rows, *self.shape[1:])

    def picked(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """These rows, inflated; memory is taken for them alone."""
        if self.fortran_order:
            return self.all()[indices]
        wanted, places = np.unique(indices, return_inverse=True)
        rows = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        with self._inflating() as stream:
            for place, index in enumerate(wanted.tolist()):
                stream.seek(self.header_length + index * self.row_bytes)
                rows[place] = np.frombuffer(self._next(stream, self.row_bytes), self.dtype).reshape(self.shape[1:])
        return rows[places]

    @contextmanager
    def _inflating(self) -> Iterator[IO[bytes]]:
        """The member's content, at the first value."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as stream:
                stream.seek(self.header_length)
                yield stream
        except UserError:
            raise
        except (*_DAMAGE, KeyError) as error:  # KeyError: the file has been replaced by one without this array
            raise _damaged(self.path, error) from error
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _next(self, stream: IO[bytes], num_bytes: int) -> bytes:
        values = stream.read(num_bytes)
        if len(values) < num_bytes:
            raise _damaged(self.path, f"array {self.name!r} ends early")
        return values


class InflatedArrays:
    """Reads rows of arrays, and keeps what it inflated while that takes no more memory than allowed.

    Windows of one episode often follow one another, and each would inflate it from its first frame again. Arrays used
    least recently are dropped first. What is kept stays in its process: it is not pickled into workers.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self._beginnings: OrderedDict[NpzMember, NDArray[Any]] = OrderedDict()
        self._num_bytes = 0

    def __getstate__(self) -> int:
        return self.max_bytes

    def __setstate__(self, max_bytes: int) -> None:
        InflatedArrays.__init__(self, max_bytes)

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def rows(self, member: NpzMember, indices: NDArray[np.int64]) -> NDArray[Any]:
        """The rows at these indices along the first axis, as a new array."""
        if member.data_offset is not None:
            return member.mapped()[indices]
        num_rows = int(indices.max(initial=-1)) + 1
        kept = self._beginnings.get(member)
        if kept is None or len(kept) < num_rows:
            kept = self._inflate(member, num_rows, again=kept is not None)
        if kept is None:
            return member.picked(indices)
        self._beginnings.move_to_end(member)
        return kept[indices]

    def _inflate(self, member: NpzMember, num_rows: int, again: bool) -> NDArray[Any] | None:
        """At least so many rows, kept; None if they are too many to keep."""
        if member.num_bytes <= self.max_bytes and (again or member.fortran_order):
            rows = member.all()  # who comes back for later rows will do so again
        elif num_rows * member.row_bytes <= self.max_bytes and not member.fortran_order:
            rows = member.beginning(num_rows)
        else:
            return None
        self._drop(member)
        self._beginnings[member] = rows
        self._num_bytes += rows.nbytes
        while self._num_bytes > self.max_bytes:
            self._drop(next(iter(self._beginnings)))
        return rows

    def _drop(self, member: NpzMember) -> None:
        if member in self._beginnings:
            self._num_bytes -= self._beginnings.pop(member).nbytes


def npz_members(path: str) -> dict[str, NpzMember]:
    """The arrays of an npz file by name. Remembered until the file changes.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return _npz_members(path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=_CACHED_DIRECTORIES)
def _npz_members(path: str, modified: int, size: int, inode: int) -> dict[str, NpzMember]:
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            arrays = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            members = [_read_member(path, modified, size, file, archive, info) for info in arrays]
    except UserError:
        raise
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error
    return {member.name: member for member in members}


def as_bytes(frames: NDArray[Any], member: NpzMember) -> NDArray[np.uint8]:
    """Frames of this array as uint8, whatever integers they were stored as.

    Raises:
        UserError: values outside 0..255.
    """
    if frames.dtype == np.uint8:
        return frames
    if frames.min() < 0 or frames.max() > 255:
        raise UserError(
            f"{member.path}: array {member.name!r} holds values from {frames.min()} to {frames.max()}; "
            "expected 0..255; store frames as uint8"
        )
    return frames.astype(np.uint8)


def _read_member(
    path: str, modified: int, size: int, file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> NpzMember:
    name = info.filename.removesuffix(".npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _damaged(path, f"array {name!r} is compressed by method {info.compress_type}; expected deflate or none")
    with archive.open(info) as stream:
        try:
            shape, fortran_order, dtype = _read_npy_header(stream)
        except Exception as error:  # a header is a Python literal: parsing a damaged one raises nearly anything
            raise _damaged(path, f"array {name!r} has no readable header: {error}") from error
        header_length = stream.tell()
    stored = info.compress_type == zipfile.ZIP_STORED
    offset = _offset_in_zip(file, info) + header_length if stored else None
    member = NpzMember(path, modified, name, shape, dtype, fortran_order, header_length, offset)
    _check_size(member, info, size)
    return member


def _check_size(member: NpzMember, info: zipfile.ZipInfo, file_size: int) -> None:
    """Mapping or allocating what a forged header claims would take the process down."""
    if member.dtype.hasobject:
        return
    claimed, compressed = member.num_bytes, info.compress_size + 1
    room = MAX_DEFLATE_RATIO * compressed if member.data_offset is None else file_size - member.data_offset
    if min(member.shape, default=0) < 0 or member.header_length + claimed != info.file_size or claimed > room:
        raise _damaged(member.path, f"array {member.name!r} claims {claimed} bytes that are not there")
    if claimed > max(_BOMB_BYTES, _BOMB_RATIO * min(compressed, file_size)):
        raise _damaged(member.path, f"array {member.name!r} would grow from {compressed} to {claimed} bytes")


def _read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"npy format {version} is not for plain arrays")


def _offset_in_zip(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where a member's content starts; the local header's extra field may differ from the central directory's."""
    file.seek(info.header_offset)
    name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return info.header_offset + _LOCAL_HEADER.size + name_length + extra_length


def unreadable(path: str, error: OSError | ValueError) -> UserError:
    reason = error.strerror or error if isinstance(error, OSError) else error
    return UserError(f"{path}: cannot be read ({str(reason).lower()}); expected an episode")


def _damaged(path: str, reason: object) -> UserError:
    return UserError(f"{path}: truncated or not an npz file ({reason}); record or convert it again")
