"""Reading parts of recorded episodes. Knows file formats; knows nothing of clips, datasets or tensors.

An npz episode holds one image array per camera, ``(N, H, W, 3)`` uint8; optionally ``action`` ``(N, D)``, or
``(N - 1, D)`` when the last frame has none; and optionally ``reward`` ``(N,)``. Only the frames asked for are read:
uncompressed arrays through a memory map at their place inside the zip, compressed ones by inflating no further than the
last frame needed. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.segments import Indices
from ivideogpt.errors import UserError

ACTION_KEY = "action"
REWARD_KEY = "reward"

_LOCAL_HEADER = struct.Struct("<26xHH")  # ends with the lengths of the file name and of the extra field
_CACHED_INDICES = 4096  # directories of episodes kept per process, about 1 KB each
_MAX_DEFLATE_RATIO = 1032  # no deflated stream is smaller: a larger claim is a forged size


class EpisodeReader(Protocol):
    @property
    def path(self) -> str: ...

    @property
    def num_frames(self) -> int: ...

    @property
    def action_dim(self) -> int | None:
        """None if the episode has no actions."""

    @property
    def has_rewards(self) -> bool: ...

    def read(self, indices: Indices) -> NDArray[np.uint8]:
        """Frames (n, H, W, 3)."""

    def actions(self, indices: Indices) -> NDArray[np.float32] | None:
        """Actions (n, D) taken at these frames; None if the episode has none."""

    def rewards(self, indices: Indices) -> NDArray[np.float32] | None:
        """Rewards (n,) of the actions taken at these frames; None if the episode has none."""


@dataclass(frozen=True)
class NpzMember:
    """One array inside an npz file: where its values start and what they are."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    header_length: int
    data_offset: int | None  # of the values within the file; None if they are compressed

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, indices: Indices) -> NDArray[Any]:
        """The rows at these indices along the first axis, as a new array."""
        if self.data_offset is not None:
            return self._mapped(self.data_offset)[indices]
        return self._inflated(int(indices.max()) + 1)[indices]

    def all(self) -> NDArray[Any]:
        return self._inflated(self.shape[0]) if self.data_offset is None else np.array(self._mapped(self.data_offset))

    def _mapped(self, offset: int) -> NDArray[Any]:
        # A plain mmap: numpy.memmap costs as much again as reading a window does.
        with open(self.path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.ndarray(self.shape, self.dtype, content, offset, order="F" if self.fortran_order else "C")

    def _inflated(self, num_rows: int) -> NDArray[Any]:
        if self.fortran_order:  # its first axis is spread over the whole stream
            values = np.frombuffer(self._inflate(math.prod(self.shape)), self.dtype)
            return values.reshape(self.shape[::-1]).T
        row_shape = self.shape[1:]
        return np.frombuffer(self._inflate(num_rows * math.prod(row_shape)), self.dtype).reshape(-1, *row_shape)

    def _inflate(self, num_values: int) -> bytes:
        num_bytes = num_values * self.dtype.itemsize
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as stream:
                stream.read(self.header_length)
                values = stream.read(num_bytes)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise _damaged(self.path, error) from error
        if len(values) < num_bytes:
            raise _damaged(self.path, f"array {self.name!r} ends early")
        return values


@dataclass(frozen=True)
class NpzEpisode:
    """An :class:`EpisodeReader` of one npz file."""

    path: str
    images: NpzMember
    members: Mapping[str, NpzMember]

    @property
    def num_frames(self) -> int:
        return self.images.shape[0]

    @property
    def frame_size(self) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]

    @property
    def action_dim(self) -> int | None:
        action = self._member(ACTION_KEY)
        return action.shape[1] if action else None

    @property
    def has_rewards(self) -> bool:
        return self._member(REWARD_KEY) is not None

    def read(self, indices: Indices) -> NDArray[np.uint8]:
        frames = self.images.rows(indices)
        if frames.dtype == np.uint8:
            return frames
        if frames.min() < 0 or frames.max() > 255:
            raise UserError(
                f"{self.path}: array {self.images.name!r} holds values from {frames.min()} to {frames.max()}; "
                "expected 0..255; store frames as uint8"
            )
        return frames.astype(np.uint8)

    def actions(self, indices: Indices) -> NDArray[np.float32] | None:
        values = self._series(ACTION_KEY)
        return None if values is None else values[indices]

    def rewards(self, indices: Indices) -> NDArray[np.float32] | None:
        values = self._series(REWARD_KEY)
        return None if values is None else values.reshape(-1)[indices]

    def _member(self, key: str) -> NpzMember | None:
        """Checked when it is asked for: what an action-free run never reads need not fit."""
        member = self.members.get(key)
        if member is not None:
            _check_series(member, self.num_frames)
        return member

    def _series(self, key: str) -> NDArray[np.float32] | None:
        """All values as float32, one row per frame: the missing last one is zero."""
        member = self._member(key)
        if member is None:
            return None
        values = member.all().astype(np.float32)
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise UserError(
                f"{self.path}: array {member.name!r} holds NaN or infinite values (first in row {row}); "
                "repair or leave out the episode"
            )
        missing = self.num_frames - len(values)
        return np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1)) if missing else values


def open_episode(path: str | os.PathLike[str], image_key: str = "image") -> NpzEpisode:
    """Finds the arrays and checks the frames' shape and type; reads no values yet.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    path = os.fspath(path)
    members = npz_members(path)
    images = members.get(image_key)
    if images is None:
        raise UserError(
            f"{path}: no image array {image_key!r}; the file holds {_listed(members)}; "
            "rename the array or choose the dataset whose image key it is"
        )
    _check_images(images)
    return NpzEpisode(path, images, members)


def check_carries(
    episode: EpisodeReader, actions: bool = False, rewards: bool = False, action_dim: int | None = None
) -> None:
    """Raises UserError unless the episode has what is asked of it, and actions of this dimension."""
    missing = [ACTION_KEY] if actions and episode.action_dim is None else []
    missing += [REWARD_KEY] if rewards and not episode.has_rewards else []
    if missing:
        raise UserError(f"{episode.path}: no array {missing[0]!r}, which this run needs; record it or run without it")
    if actions and action_dim not in (None, episode.action_dim):
        raise UserError(
            f"{episode.path}: actions have {episode.action_dim} dimensions, expected {action_dim}; "
            "set action_dim to the data's or use a checkpoint of that dimension"
        )


def npz_members(path: str) -> dict[str, NpzMember]:
    """The arrays of an npz file by name. Remembered until the file changes."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    return _npz_members(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=_CACHED_INDICES)
def _npz_members(path: str, modified: int, size: int) -> dict[str, NpzMember]:
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            arrays = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            members = [_read_member(path, size, file, archive, info) for info in arrays]
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    return {member.name: member for member in members}


def _read_member(path: str, size: int, file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NpzMember:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as stream:
        try:
            shape, fortran_order, dtype = _read_npy_header(stream)
        except ValueError as error:
            raise _damaged(path, f"array {name!r} has no readable header: {error}") from error
        header_length = stream.tell()
    stored = info.compress_type == zipfile.ZIP_STORED
    offset = _offset_in_zip(file, info) + header_length if stored else None
    member = NpzMember(path, name, shape, dtype, fortran_order, header_length, offset)
    room = size - offset if offset is not None else _MAX_DEFLATE_RATIO * (info.compress_size + 1)
    if not dtype.hasobject and (header_length + member.num_bytes != info.file_size or member.num_bytes > room):
        raise _damaged(path, f"array {name!r} claims {member.num_bytes} bytes that are not there")
    return member


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


def _check_images(member: NpzMember) -> None:
    _refuse_objects(member)
    if len(member.shape) != 4 or member.shape[3] != 3 or min(member.shape) < 1:
        raise UserError(
            f"{member.path}: array {member.name!r} has shape {member.shape}; "
            "expected frames (N, H, W, 3) with N at least 1; store channels last"
        )
    if not np.issubdtype(member.dtype, np.integer):
        raise UserError(f"{member.path}: array {member.name!r} is {member.dtype}; expected uint8 frames in 0..255")


def _check_series(member: NpzMember, num_frames: int) -> None:
    """Actions (N, D) and rewards (N,) or (N, 1); the last row may be missing."""
    _refuse_objects(member)
    is_action = member.name == ACTION_KEY
    rank_fits = len(member.shape) == 2 if is_action else member.shape[1:] in ((), (1,)) and member.shape != ()
    if not rank_fits or member.dtype.kind not in "fiub":
        expected = "numbers of shape (N, D)" if is_action else "numbers of shape (N,)"
        raise UserError(
            f"{member.path}: array {member.name!r} is {member.dtype} of shape {member.shape}; "
            f"expected {expected}, one row a frame"
        )
    if member.shape[0] not in (num_frames, num_frames - 1):
        raise UserError(
            f"{member.path}: array {member.name!r} has {member.shape[0]} rows for {num_frames} frames; expected "
            f"{num_frames}, or {num_frames - 1} without the last; row i belongs to what was done at frame i"
        )


def _refuse_objects(member: NpzMember) -> None:
    if member.dtype.hasobject:
        raise UserError(
            f"{member.path}: array {member.name!r} holds pickled Python objects, which are never loaded; "
            "store it as a plain numeric array"
        )


def _listed(members: dict[str, NpzMember]) -> str:
    if not members:
        return "no arrays"
    return ", ".join(f"{member.name} {member.shape} {member.dtype}" for member in members.values())


def _damaged(path: str, reason: object) -> UserError:
    return UserError(f"{path}: truncated or not an npz file ({reason}); record or convert it again")


def _unreadable(path: str, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({str(error.strerror).lower()}); expected an .npz episode")
