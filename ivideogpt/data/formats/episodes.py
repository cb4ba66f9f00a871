"""Interface of recorded episodes in any format, and npz episodes. Knows nothing of clips, datasets or tensors.

An npz episode holds one image array per camera, ``(N, H, W, 3)`` uint8; optionally ``action`` ``(N, D)``, or
``(N - 1, D)`` when the last frame has none; and optionally ``reward`` ``(N,)``. Only requested frames are read.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.clips.segments import Indices
from ivideogpt.data.formats.npz_arrays import (
    InflatedArrays,
    NpzMember,
    NpzMembers,
    UnfitArray,
    as_bytes,
    check_sums,
    fit_in_bytes,
    npz_members,
)
from ivideogpt.data.plausible import check_plausible
from ivideogpt.errors import UserError

ACTION_KEY = "action"
REWARD_KEY = "reward"
SUCCESS_KEY = "success"
OBSERVATION_KEY = "observation"
SERIES = (ACTION_KEY, REWARD_KEY, SUCCESS_KEY)  # arrays of numbers that clips have
_CHUNK_BYTES = 32 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class StoredArray:
    """Description of an episode's array: shape of a row, type, and storage in the file."""

    name: str
    row_shape: tuple[int, ...] | None  # None: unreadable
    dtype: str
    storage: str  # mapped, compressed, decoded or unreadable; for LeRobot features: the array they are read as

    def __str__(self) -> str:
        if self.row_shape is None:
            return f"{self.name:<16} cannot be read"
        shape = ", ".join(map(str, ("N", *self.row_shape)))
        return f"{self.name:<16} ({shape}{',' * (not self.row_shape)}) {self.dtype}, {self.storage}"


@dataclass(frozen=True)
class Episode(ABC):
    """One recorded episode: frames and, as far as ``dimension`` knows them, arrays of numbers. Base of all formats."""

    path: str  # name in messages

    @property
    @abstractmethod
    def num_frames(self) -> int: ...

    @property
    @abstractmethod
    def frame_size(self) -> tuple[int, int]:
        """Return height and width, the same for all frames."""

    @abstractmethod
    def read(self, indices: Indices) -> NDArray[np.uint8]:
        """Read these frames (n, H, W, 3)."""

    def dimension(self, name: str) -> int | None:
        """Return D of the array ``action``, ``reward`` (1) or ``success`` (1); None if the episode has none."""
        return None

    def series(self, name: str) -> NDArray[np.float32] | None:
        """Read all rows (N, D) of such an array; row i belongs to what was done at frame i."""
        return None

    def series_at(self, name: str, indices: Indices) -> NDArray[np.float32] | None:
        """Read the rows (n, D) of such an array at these frames."""
        values = self.series(name)
        return None if values is None else values[indices]

    def remarks(self) -> tuple[str, ...]:
        """List remarks on the whole dataset, for ``python -m ivideogpt.data inspect``."""
        return ()

    @property
    def action_dim(self) -> int | None:
        return self.dimension(ACTION_KEY)

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """Return the meaning of each number of an action; None if the format does not know it."""
        return None

    @property
    def has_rewards(self) -> bool:
        return self.dimension(REWARD_KEY) is not None

    @property
    def has_successes(self) -> bool:
        return self.dimension(SUCCESS_KEY) is not None

    def actions(self, indices: Indices) -> NDArray[np.float32] | None:
        """Read the actions (n, D) taken at these frames; None if the episode has none."""
        return self.series_at(ACTION_KEY, indices)

    def rewards(self, indices: Indices) -> NDArray[np.float32] | None:
        """Read the rewards (n,) of the actions taken at these frames; None if the episode has none."""
        values = self.series_at(REWARD_KEY, indices)
        return None if values is None else values[:, 0]

    def successes(self, indices: Indices) -> NDArray[np.float32] | None:
        """Read whether the actions taken at these frames succeeded, (n,) of 0 and 1; None if the episode has none.

        A positive number is a success.
        """
        values = self.series_at(SUCCESS_KEY, indices)
        return None if values is None else (values[:, 0] > 0).astype(np.float32)

    def content_checksum(self) -> int:
        """Return a CRC-32 of as much of the content as is known without reading it; 0 if that is nothing."""
        return 0

    def describe(self) -> tuple[StoredArray, ...]:
        """List the stored arrays."""
        arrays = [StoredArray("frames", (*self.frame_size, 3), "uint8", "decoded")]
        for name in SERIES:
            if (dimension := self.dimension(name)) is not None:
                row_shape = (dimension,) if name == ACTION_KEY else ()
                arrays.append(StoredArray(name, row_shape, "float32", "decoded"))
        return tuple(arrays)

    def verify(self) -> None:
        """Read everything. Raises UserError for any fault that training could meet."""
        self.verify_series()
        for indices in chunks(self, self.num_frames):
            self.read(indices)

    def verify_series(self) -> None:
        """Read all actions, rewards and successes. Raises UserError for any that training would refuse."""
        for name in SERIES:
            self.series(name)


def chunks(episode: Episode, num_frames: int) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of the first frames in chunks that fit into little memory."""
    height, width = episode.frame_size
    size = max(_CHUNK_BYTES // (height * width * 3), 1)
    for start in range(0, num_frames, size):
        yield np.arange(start, min(start + size, num_frames))


class Episodes(Protocol):
    """The episodes of one source. Cheap to keep and to pickle into workers: no file is open."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Episode:
        """Open an episode. Raises UserError naming the file and the fault."""

    def name(self, index: int) -> str:
        """Return the name in messages and summaries: a path, or path#episode."""


@dataclass(frozen=True)
class Subset:
    """The episodes of a source with these numbers, in this order."""

    episodes: Episodes
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    def open(self, index: int) -> Episode:
        return self.episodes.open(int(self.numbers[index]))

    def name(self, index: int) -> str:
        return self.episodes.name(int(self.numbers[index]))


def keep_some(episodes: Episodes, number: int | None) -> Episodes:
    """Sample ``number`` distinct episodes with a fixed seed, in order; all if there are not more."""
    if number is None or number >= len(episodes):
        return episodes
    return Subset(episodes, np.sort(np.random.default_rng(0).choice(len(episodes), number, replace=False)))


def first_readable(read: Callable[[Item], Result], items: Iterable[Item]) -> Result:
    """Return what ``read`` makes of the first item that it can read; if there is none, raise the first item's error."""
    errors: list[UserError | OSError] = []
    for item in items:
        try:
            return read(item)
        except (UserError, OSError) as error:
            errors.append(error)
    raise errors[0]


def pack_strings(strings: Iterable[str]) -> NDArray[np.bytes_]:
    """Pack hundreds of thousands of paths or names into one array; ``os.fsdecode`` unpacks an element.

    In a forked worker a list would be copied page by page, as reading a string changes its reference count.
    """
    return np.array([os.fsencode(string) for string in strings], dtype=np.bytes_)


@dataclass(frozen=True)
class NpzEpisodes:
    """:class:`Episodes` in one npz file each, with a shared cache of inflated arrays."""

    files: Sequence[str] | NDArray[np.bytes_]  # see pack_strings
    image_keys: tuple[str, ...] = ("image",)
    arrays: InflatedArrays = field(default_factory=InflatedArrays)

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> NpzEpisode:
        return open_episode(self.name(index), self.image_keys, self.arrays)

    def name(self, index: int) -> str:
        return os.fsdecode(self.files[index])


@dataclass(frozen=True)
class NpzEpisode(Episode):
    """One npz file."""

    images: NpzMember
    members: NpzMembers
    arrays: InflatedArrays

    @property
    def num_frames(self) -> int:
        return self.images.shape[0]

    @property
    def frame_size(self) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]

    def read(self, indices: Indices) -> NDArray[np.uint8]:
        return as_bytes(self.arrays.rows(self.images, indices), self.images)

    def dimension(self, name: str) -> int | None:
        member = self._member(name)
        return None if member is None else member.shape[1] if len(member.shape) > 1 else 1

    def series(self, name: str) -> NDArray[np.float32] | None:
        """Read an array as :meth:`Episode.series` says; a missing last row becomes zero."""
        member = self._member(name)
        if member is None:
            return None
        stored = self.arrays.rows(member, np.arange(member.shape[0]))
        check_plausible(stored, f"{self.path}: array {member.name!r}")
        values = stored.astype(np.float32)
        rows = values if values.ndim > 1 else values[:, None]
        missing = self.num_frames - len(rows)
        return np.pad(rows, [(0, missing), (0, 0)]) if missing else rows

    def content_checksum(self) -> int:
        return self.members.checksum((self.images.name, *SERIES))

    def describe(self) -> tuple[StoredArray, ...]:
        readable = self.members.readable()
        return tuple(
            StoredArray(name, array.shape[1:], str(array.dtype), "mapped" if array.data_offset else "compressed")
            if (array := readable.get(name))
            else StoredArray(name, None, "unknown", "unreadable")
            for name in self.members
        )

    def verify(self) -> None:
        self.verify_series()
        check_sums(self.path)  # all arrays, as a memory map does not notice flipped bits
        if self.images.dtype != np.uint8:
            super().verify()

    def _member(self, name: str) -> NpzMember | None:
        """Return a checked array. Checked lazily: arrays that a run never reads may be invalid.

        Other recorders store other things as success or state, which then count as missing.
        """
        try:
            member = self.members.get(name)
            if member is not None:
                _check_series(member, self.num_frames)
            return member
        except UnfitArray:
            if name in (ACTION_KEY, REWARD_KEY):
                raise
            return None


@dataclass(frozen=True)
class ReplayFileEpisode(NpzEpisode):
    """An episode in the replay format of agents and demonstrations: stacks of frames (N, 3 K, H, W).

    Row i holds the action that led to frame i and its reward; ordinary episodes hold the action taken at frame i.
    """

    @property
    def frame_size(self) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]

    def read(self, indices: Indices) -> NDArray[np.uint8]:
        stacks = self.arrays.rows(self.images, indices)
        return np.ascontiguousarray(stacks[:, -3:].transpose(0, 2, 3, 1))

    def series(self, name: str) -> NDArray[np.float32] | None:
        values = super().series(name)
        return None if values is None else np.concatenate([values[1:], np.zeros_like(values[:1])])


@dataclass(frozen=True)
class Recordings(NpzEpisodes):
    """Episodes and demonstrations, for commands that inspect both."""

    def open(self, index: int) -> NpzEpisode:
        path = self.name(index)
        members = npz_members(path)
        if OBSERVATION_KEY not in members or any(key in members for key in self.image_keys):
            return super().open(index)
        stacks = members[OBSERVATION_KEY]
        if len(stacks.shape) != 4 or stacks.shape[1] % 3 or min(stacks.shape) < 1 or stacks.dtype != np.uint8:
            raise UserError(
                f"{path}: array {OBSERVATION_KEY!r} is {stacks.dtype} of shape {stacks.shape}; expected stacks of "
                "frames (N, 3 K, H, W) in uint8"
            )
        return ReplayFileEpisode(path, stacks, members, self.arrays)


def open_episode(
    path: str | os.PathLike[str],
    image_key: str | tuple[str, ...] = "image",
    arrays: InflatedArrays | None = None,
) -> NpzEpisode:
    """Open an episode: find the arrays and check the frames' shape and type; no values are read yet.

    Args:
        image_key: array that holds the frames, or several, of which the first that is there does.
        arrays: reader and cache of values. By default a compressed array is inflated for each window.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    path = os.fspath(path)
    members = npz_members(path)
    keys = (image_key,) if isinstance(image_key, str) else image_key
    image_key = next((key for key in keys if key in members), keys[0])
    images = members.get(image_key)
    if images is None:
        described = {name: f"{name} {member.shape} {member.dtype}" for name, member in members.readable().items()}
        listed = [described.get(name, name) for name in members]
        raise UserError(
            f"{path}: no image array {image_key!r}; the file holds {', '.join(listed) or 'no arrays'}; "
            "rename the array or choose the dataset whose image key it is"
        )
    if len(images.shape) != 4 or images.shape[3] != 3 or min(images.shape) < 1:
        raise UserError(
            f"{path}: array {image_key!r} has shape {images.shape}; "
            "expected frames (N, H, W, 3) with N at least 1; store channels last"
        )
    if not np.issubdtype(images.dtype, np.integer):
        raise UserError(f"{path}: array {image_key!r} is {images.dtype}; expected uint8 frames in 0..255")
    return NpzEpisode(path, images, members, arrays or InflatedArrays())


def check_carries(
    episode: Episode,
    actions: bool = False,
    rewards: bool = False,
    action_dim: int | None = None,
    successes: bool = False,
) -> None:
    """Raise UserError unless the episode has the required arrays, and actions of this dimension."""
    missing = [ACTION_KEY] if actions and episode.action_dim is None else []
    missing += [REWARD_KEY] if rewards and not episode.has_rewards else []
    missing += [SUCCESS_KEY] if successes and not episode.has_successes else []
    if missing:
        choice = ", or name the feature of a LeRobot folder with @action=<feature>" * (missing[0] == ACTION_KEY)
        raise UserError(
            f"{episode.path}: no array {missing[0]!r}, which this run needs; record it or run without it{choice}"
        )
    if actions and action_dim not in (None, episode.action_dim):
        raise UserError(
            f"{episode.path}: actions have {episode.action_dim} dimensions, expected {action_dim}; "
            "set action_dim to the data's or use a checkpoint of that dimension; training on a mix of robots needs "
            "--action_spaces, a model of several the --action_space of this one"
        )


def holds_frames(member: NpzMember, image_keys: Sequence[str], values: NDArray[Any] | None = None) -> bool:
    """Tell whether an array is a camera: integers (N, H, W, 3), in 0..255 unless training reads it, or refuses it.

    ``values``: the array, where it has been read already.
    """
    if member.dtype.kind not in "iu" or len(member.shape) != 4 or member.shape[3] != 3 or min(member.shape) < 1:
        return False
    if member.dtype == np.uint8 or member.name in image_keys:
        return True
    return fit_in_bytes(member.all() if values is None else values)


def _check_series(member: NpzMember, num_frames: int) -> None:
    """Check the shape of actions (N, D), and of rewards and successes (N,) or (N, 1); the last row may be missing."""
    is_number = member.name in (REWARD_KEY, SUCCESS_KEY)
    fits = len(member.shape) in ((2,) if member.name == ACTION_KEY else (1, 2))
    if is_number and member.shape[1:] not in ((), (1,)):
        fits = False
    if not fits or member.dtype.kind not in "fiub":
        raise UnfitArray(
            f"{member.path}: array {member.name!r} is {member.dtype} of shape {member.shape}; "
            f"expected numbers of shape {'(N,)' if is_number else '(N, D)'}, one row a frame"
        )
    if member.shape[0] not in (num_frames, num_frames - 1):
        raise UnfitArray(
            f"{member.path}: array {member.name!r} has {member.shape[0]} rows for {num_frames} frames; expected "
            f"{num_frames}, or {num_frames - 1} without the last; row i belongs to what was done at frame i"
        )
