"""Read npz and npy files of unknown origin, whole or in part. Knows zip and npy; knows nothing of episodes.

Uncompressed arrays are read through a memory map at their offset in the file, compressed ones by inflating up to the
last row needed. Nothing is ever unpickled, and sizes that the file cannot hold are refused. Arrays are parsed lazily:
those that are not requested may be of any kind, and damaged.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ivideogpt.errors import UserError

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the file name, length of the extra field
_LOCAL_SIGNATURE = b"PK\3\4"
_MAX_HEADER = 12_000  # bytes; numpy reads no npy header of more than 10,000 characters
_MAX_EMPTY_ROW = 1 << 20  # limit for the row size of an array without rows, in bytes
_CACHED_DIRECTORIES = 4096  # cached zip directories per process, about 2 KB each
MAX_DEFLATE_RATIO = 1032  # maximum of deflate: a larger ratio means a forged size
_BOMB_RATIO, _BOMB_BYTES = 200, 1 << 30  # arrays this large with this ratio are no recorded video
# Errors of zipfile and zlib for damaged files: NotImplementedError for versions, RuntimeError for encryption; KeyError
# and TypeError for a file that has been replaced by one without this array, or by a shorter one.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError, ValueError, OverflowError),
    *(KeyError, TypeError),
)
_ENCRYPTED = 1  # bit of a member's flags
NOT_NPZ, NOT_NPY = "truncated or not an npz file", "truncated or not an npy file"
_CHECKED_AT_ONCE = 1 << 20  # bytes


class UnfitArray(UserError):
    """An array that is of another kind than expected, but not damaged."""


@dataclass(frozen=True)
class NpzMember:
    """One array of an npz or npy file: offset, type and shape of its values."""

    path: str
    modified: int  # in ns; a change invalidates cached values
    name: str  # empty for the array of an npy file
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    header_length: int
    data_offset: int | None  # position of the values in the file; None if compressed

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def mapped(self) -> NDArray[Any]:
        """Return the whole array as a view of the file. It must not be compressed."""
        assert self.data_offset is not None
        if self.num_bytes == 0:
            return np.empty(self.shape, self.dtype)
        with _reading(self.path):
            # A plain mmap: numpy.memmap would double the time of reading a window.
            with open(self.path, "rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            order: Literal["F", "C"] = "F" if self.fortran_order else "C"
            return np.ndarray(self.shape, self.dtype, content, self.data_offset, order=order)

    def all(self) -> NDArray[Any]:
        """Read the whole array, read-only. In npz files its checksum is verified, which a memory map cannot do."""
        if self.num_bytes == 0:
            return np.empty(self.shape, self.dtype)
        with self._content() as stream:
            values = np.frombuffer(self._next(stream, self.num_bytes), self.dtype)
        return values.reshape(self.shape[::-1]).T if self.fortran_order else values.reshape(self.shape)

    def beginning(self, num_rows: int) -> NDArray[Any]:
        """Inflate the first rows. Not for Fortran order, which spreads rows over the whole stream."""
        with self._content() as stream:
            values = np.frombuffer(self._next(stream, num_rows * self.row_bytes), self.dtype)
        return values.reshape(num_rows, *self.shape[1:])

    def picked(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Inflate these rows; memory is allocated for them alone."""
        if self.fortran_order:
            return self.all()[indices]
        wanted, places = np.unique(indices, return_inverse=True)
        rows = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        with self._content() as stream:
            for place, index in enumerate(wanted.tolist()):
                stream.seek(self.header_length + index * self.row_bytes)
                rows[place] = np.frombuffer(self._next(stream, self.row_bytes), self.dtype).reshape(self.shape[1:])
        return rows[places]

    @contextmanager
    def _content(self) -> Iterator[IO[bytes]]:
        """Yield the inflated stream of the array, positioned at the first value."""
        with _reading(self.path), open(self.path, "rb") as file:
            if not self.name:
                file.seek(self.header_length)
                yield file
                return
            with zipfile.ZipFile(file) as archive, archive.open(f"{self.name}.npy") as stream:
                stream.read(self.header_length)  # a seek may skip the checksum
                yield stream

    def _next(self, stream: IO[bytes], num_bytes: int) -> bytes:
        values = stream.read(num_bytes)
        if len(values) < num_bytes:
            raise _damaged(self.path, f"array {self.name!r} ends early")
        return values


class RecentArrays:
    """LRU cache of arrays by key. Its content is not pickled into workers."""

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._arrays: OrderedDict[Any, NDArray[Any]] = OrderedDict()

    def __reduce__(self) -> tuple[type[RecentArrays], tuple[int]]:
        return type(self), (self.max_bytes,)

    def get(self, key: Any) -> NDArray[Any] | None:
        if key in self._arrays:
            self._arrays.move_to_end(key)
        return self._arrays.get(key)

    def put(self, key: Any, array: NDArray[Any]) -> None:
        """Store an array under this key, and drop the least recently used ones."""
        before = self._arrays.pop(key, None)
        self._arrays[key] = array
        self.num_bytes += array.nbytes - (0 if before is None else before.nbytes)
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._arrays.popitem(last=False)[1].nbytes


class InflatedArrays(RecentArrays):
    """Reader of rows with a cache of inflated arrays, limited in bytes.

    Consecutive windows often belong to one episode, and each would inflate it from the first frame again.
    """

    def rows(self, member: NpzMember, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Read the rows at these indices along the first axis into a new array."""
        if member.data_offset is not None:
            return member.mapped()[indices]
        num_rows = int(indices.max(initial=-1)) + 1
        kept = self.get(member)
        if kept is not None and len(kept) >= num_rows:
            return kept[indices]
        if member.num_bytes <= self.max_bytes and (kept is not None or member.fortran_order):
            rows = member.all()  # a second request for later rows is probably not the last
        elif num_rows * member.row_bytes <= self.max_bytes and not member.fortran_order:
            rows = member.beginning(num_rows)
        else:
            return member.picked(indices)
        self.put(member, rows)
        return rows[indices]


class NpzMembers(Mapping[str, NpzMember]):
    """The arrays of an npz file by name, parsed lazily.

    Looking up an unreadable array raises UserError.
    """

    def __init__(self, path: str, modified: int, size: int, infos: Sequence[zipfile.ZipInfo]) -> None:
        self.path = path
        self._modified, self._size = modified, size
        self._infos = {info.filename.removesuffix(".npy"): info for info in infos}
        self._parsed: dict[str, NpzMember] = {}

    def __getitem__(self, name: str) -> NpzMember:
        if name not in self._parsed:
            info = self._infos[name]
            with _reading(self.path), open(self.path, "rb") as file:
                self._parsed[name] = _read_member(self.path, self._modified, self._size, file, info)
        return self._parsed[name]

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def checksum(self, names: Sequence[str]) -> int:
        """Return a CRC-32 of these arrays, as far as they are there, from their checksums in the zip's directory."""
        return zlib.crc32(repr([(name, self._infos[name].CRC) for name in names if name in self._infos]).encode())

    def readable(self) -> dict[str, NpzMember]:
        """Return the readable arrays, by name."""
        found = {}
        for name in self:
            with suppress(UserError):
                found[name] = self[name]
        return found


def npz_members(path: str) -> NpzMembers:
    """Return the arrays of an npz file by name, cached until the file changes.

    Raises:
        UserError: naming the file and the fault.
    """
    status = _status(path)
    return _npz_members(path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=_CACHED_DIRECTORIES)
def _npz_members(path: str, modified: int, size: int, inode: int) -> NpzMembers:
    with _reading(path), open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        arrays = [info for info in archive.infolist() if info.filename.endswith(".npy") and info.filename != ".npy"]
    return NpzMembers(path, modified, size, arrays)


def npy_array(path: str) -> NpzMember:
    """Return the array of an npy file.

    Raises:
        UserError: naming the file and the fault.
    """
    status = _status(path)
    with _reading(path, NOT_NPY), open(path, "rb") as file:
        shape, fortran_order, dtype = read_npy_header(file)
        start = file.tell()
        member = NpzMember(path, status.st_mtime_ns, "", shape, dtype, fortran_order, start, start)
        _check_size(member, status.st_size, status.st_size, status.st_size)
    return member


def check_sums(path: str) -> None:
    """Raise UserError unless every array of an npz file matches its checksum. Unsupported compression is skipped."""
    with _reading(path, "damaged"), open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not info.flag_bits & _ENCRYPTED:
                with archive.open(info) as content:
                    while content.read(_CHECKED_AT_ONCE):
                        pass


def _status(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


@contextmanager
def _reading(path: str, fault: str = NOT_NPZ) -> Iterator[None]:
    """Turn errors from damaged files into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        raise _damaged(path, error, fault) from error
    except OSError as error:
        raise unreadable(path, error) from error


def as_bytes(frames: NDArray[Any], member: NpzMember) -> NDArray[np.uint8]:
    """Convert frames of this array, stored as any integers, to uint8.

    Raises:
        UserError: values outside 0..255.
    """
    if not fit_in_bytes(frames):
        found = f"array {member.name!r} holds values from {frames.min()} to {frames.max()}"
        raise UserError(f"{member.path}: {found}; expected frames in 0..255")
    return frames.astype(np.uint8, copy=False)


def fit_in_bytes(values: NDArray[Any]) -> bool:
    """Tell whether these integers, one or more, are in 0..255."""
    return values.dtype == np.uint8 or bool(values.min() >= 0 and values.max() <= 255)


def _read_member(path: str, modified: int, size: int, file: IO[bytes], info: zipfile.ZipInfo) -> NpzMember:
    name = info.filename.removesuffix(".npy")
    stored = info.compress_type == zipfile.ZIP_STORED
    if not stored and info.compress_type != zipfile.ZIP_DEFLATED:
        raise _damaged(path, f"array {name!r} is compressed by method {info.compress_type}; expected deflate or none")
    if info.flag_bits & _ENCRYPTED:
        raise _damaged(path, f"array {name!r} is encrypted")
    file.seek(info.header_offset)  # the local header, which may differ from the directory's
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != _LOCAL_SIGNATURE:
        raise _damaged(path, f"array {name!r} is not where the directory says")
    offset = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    file.seek(offset)
    beginning = file.read(min(_MAX_HEADER, info.compress_size))
    stream = io.BytesIO(beginning if stored else zlib.decompressobj(-zlib.MAX_WBITS).decompress(beginning, _MAX_HEADER))
    try:
        shape, fortran_order, dtype = read_npy_header(stream)
    except ValueError as error:
        raise _damaged(path, f"array {name!r} has no readable header: {error}") from error
    header_length = stream.tell()
    start = offset + header_length if stored else None
    member = NpzMember(path, modified, name, shape, dtype, fortran_order, header_length, start)
    _check_size(member, info.compress_size, info.file_size, size)
    return member


def _check_size(member: NpzMember, stored: int, inflated: int, file_size: int) -> None:
    """Raise UserError for a header that claims more bytes than exist, which could exhaust memory, or objects.

    Args:
        stored: bytes of the array in the file, header included.
        inflated: the same, decompressed, as the zip's directory says.
    """
    title, fault = (f"array {member.name!r}", NOT_NPZ) if member.name else ("the array", NOT_NPY)
    if member.dtype.hasobject:
        raise UnfitArray(f"{member.path}: {title} holds pickled Python objects, which are never loaded; store numbers")
    claimed = member.num_bytes
    room = MAX_DEFLATE_RATIO * (stored + 1) if member.data_offset is None else file_size - member.data_offset
    if min(member.shape, default=0) < 0 or member.header_length + claimed != inflated or claimed > room:
        raise _damaged(member.path, f"{title} claims {claimed} bytes that are not there", fault)
    if claimed > max(_BOMB_BYTES, _BOMB_RATIO * min(stored + 1, file_size)):
        raise _damaged(member.path, f"{title} would grow from {stored} to {claimed} bytes", fault)
    row_bytes = math.prod(max(length, 1) for length in member.shape[1:]) * max(member.dtype.itemsize, 1)
    if claimed == 0 and (row_bytes > _MAX_EMPTY_ROW or max(member.shape) > _MAX_EMPTY_ROW):
        raise _damaged(member.path, f"{title} of shape {member.shape} holds nothing", fault)


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, order and type of an array; the stream is then at the first value.

    Raises:
        ValueError: there is no such header.
    """
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"npy format {version} is not for plain arrays")
    try:
        return readers[version](stream)
    except Exception as error:  # a header is a Python literal: damaged ones raise many types
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from error


def unreadable(path: str, error: OSError | ValueError) -> UserError:
    reason = error.strerror or error if isinstance(error, OSError) else error
    return UserError(f"{path}: cannot be read ({str(reason).lower()}); expected an episode")


def _damaged(path: str, reason: object, fault: str = NOT_NPZ) -> UserError:
    return UserError(f"{path}: {fault} ({reason}); record or convert it again")
