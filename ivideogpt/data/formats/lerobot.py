"""Read LeRobot folders of versions 3 and 2 as episodes, without the lerobot package and without conversion.

    meta/info.json                           features, frames per second, where the files are
    meta/episodes/chunk-000/file-000.parquet one row per episode: rows in data files, times in video files
    meta/tasks.parquet                       the texts of tasks
    data/chunk-000/file-000.parquet          one row per frame: timestamp, action, next.reward, single pictures
    videos/<key>/chunk-000/file-000.mp4      many concatenated episodes

and in version 2, where an episode has files of its own (those without are left out: a partial download)

    meta/episodes.jsonl, meta/tasks.jsonl
    data/chunk-000/episode_000000.parquet
    videos/chunk-000/<key>/episode_000000.mp4

Row i of ``action`` is the action at frame i, and row i of ``next.reward`` its reward, as in our npz episodes. Only the
requested parts are read: the rows of an episode, and the frames of a clip from the nearest key frame on. References
between files are verified: rows are found by episode number, frames by their order and their time, which have to agree.
"""

from __future__ import annotations

import io
import logging
import math
import multiprocessing
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ivideogpt.data.clips.segments import Indices
from ivideogpt.data.formats.episodes import SERIES as CLIP_SERIES
from ivideogpt.data.formats.episodes import Episode, StoredArray
from ivideogpt.data.formats.parquet_files import numbers, pictures, rows_holding, texts
from ivideogpt.data.formats.video_files import shared_video
from ivideogpt.data.plausible import check_plausible
from ivideogpt.errors import UserError, first_line, require
from ivideogpt.files import read_json, read_json_lines

VERSION = "v3.0"  # written by our converter
ACTION = "action"
REWARD, SUCCESS = "next.reward", "next.success"
TIMESTAMP = "timestamp"
EPISODE = "episode_index"
TASK = "task_index"
COUNTERS = (TIMESTAMP, "frame_index", EPISODE, "index", TASK)
# Array of our npz episodes -> feature with the same content.
SERIES = {"action": ACTION, "reward": REWARD, "success": SUCCESS, "state": "observation.state"}
ONE_NUMBER = ("reward", "success")  # arrays with one number per frame

_MOST_FPS = 1e5
_MOST_AXES = 8
_LARGEST = 2**31  # limit for numbers of episodes, files and frames
_COPY = "copy or record the folder again"
# What the numbers of a file are called in the paths of each version.
_NUMBERS = {"v3.": ("chunk_index", "file_index"), "v2.": ("episode_chunk", EPISODE)}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeRobotInfo:
    """``meta/info.json`` of a folder, checked."""

    root: str
    fps: float
    features: dict[str, dict[str, Any]]
    data_path: object  # a string, as :meth:`file` checks
    video_path: object
    version: str = VERSION[:3]  # v3. or v2.
    chunks_size: int = 1000  # episodes in a folder, in version 2

    @classmethod
    def load(cls, root: str | os.PathLike[str]) -> LeRobotInfo:
        """Load and check the file. Raises UserError unless it is of version 3 or 2 and complete."""
        path = Path(root) / "meta" / "info.json"
        if not path.is_file():
            raise UserError(
                f"{root}: no LeRobot folder, there is no {path}; give the folder that "
                "holds meta/ (in a lerobot: path '@' begins a camera, and ',' the next folder)"
            )
        content = read_json(path, _COPY)
        version = content.get("codebase_version")
        if not isinstance(version, str) or version[:3] not in _NUMBERS:
            raise UserError(
                f"{path}: codebase_version is {shortened(version)}; expected {VERSION} or v2.x; convert a copy of an "
                "older folder with the lerobot package of its time"
            )
        fps, features, chunks_size = content.get("fps"), content.get("features"), content.get("chunks_size", 1000)
        if not _is_length(chunks_size) or not chunks_size:
            raise UserError(f"{path}: chunks_size is {shortened(chunks_size)}; expected a whole number; {_COPY}")
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= _MOST_FPS:
            raise UserError(f"{path}: fps is {shortened(fps)}; expected frames per second; {_COPY}")
        if not isinstance(features, dict):
            raise UserError(f"{path}: features is {shortened(features)}; expected an object; {_COPY}")
        for key, feature in features.items():
            match feature:
                case {"dtype": str(), "shape": [*shape]} if len(shape) <= _MOST_AXES and all(map(_is_length, shape)):
                    continue
            raise UserError(
                f"{path}: feature {shortened(key)} is {shortened(feature)}; expected a dtype and a shape of whole "
                f"numbers; {_COPY}"
            )
        paths = content.get("data_path"), content.get("video_path")
        info = cls(str(root), float(fps), features, *paths, version[:3], chunks_size)
        info.file("data_path", 0, 0)
        return info

    @property
    def cameras(self) -> list[str]:
        """Return the keys of the cameras, sorted, without depth maps."""
        pictures = {key: feature for key, feature in self.features.items() if feature["dtype"] in ("video", "image")}
        return sorted(key for key, feature in pictures.items() if len(feature["shape"]) == 3 and not _depth(feature))

    def camera(self, key: str | None = None) -> Camera:
        """Return this camera, or the first one."""
        if not self.cameras or (key is not None and key not in self.cameras):
            raise UserError(f"{self.root}: no camera {key or ''}; it has {', '.join(self.cameras) or 'none'}")
        key = key or self.cameras[0]
        feature = self.features[key]
        # The channels are first or last, by the names of the axes or as the axis of size 3.
        shape, names = feature["shape"], feature.get("names")
        named = isinstance(names, list) and names
        channels_first = str(named[0]).startswith("c") if named else shape[0] == 3 != shape[2]
        height, width = shape[1:] if channels_first else shape[:2]
        return Camera(key, feature["dtype"] == "video", (height, width))

    def dimension(self, key: str) -> int | None:
        """Return the flattened size of a numeric feature per frame; None if there is no such feature."""
        feature = self.features.get(key)
        if feature is None or not re.match(r"u?int|float|bool", feature["dtype"]):
            return None
        return math.prod(feature["shape"]) or None

    @property
    def numeric(self) -> dict[str, int]:
        """Return the dimensions of the numeric features, without index columns."""
        dimensions = {key: self.dimension(key) for key in self.features if key not in COUNTERS}
        return {key: dimension for key, dimension in dimensions.items() if dimension is not None}

    def series(self, action_key: str) -> dict[str, str]:
        """Return the feature that is read as each array of :data:`SERIES`, for those that this folder has."""
        dimensions = {name: (key, self.dimension(key)) for name, key in (SERIES | {"action": action_key}).items()}
        return {name: key for name, (key, size) in dimensions.items() if size == 1 or (size and name not in ONE_NUMBER)}

    def no_action(self, key: str) -> str:
        """Return the message that this is not a numeric feature, with the list of those."""
        listed = ", ".join(f"{key} ({dimension})" for key, dimension in self.numeric.items())
        return f"no action: no feature {key!r} of numbers; those of numbers are {listed or 'none'}"

    def file(self, template: str, chunk: int, file: int, video_key: str = "") -> str:
        """Fill in ``data_path`` or ``video_path``, which may name no place outside of the folder."""
        text, names = getattr(self, template), _NUMBERS[self.version]
        # No other format, as {chunk_index:099999999d} would make gigabytes of zeros.
        known = rf"([^{{}}\0]|\{{video_key\}}|\{{({'|'.join(names)})(:0[1-9]d)?\}})*"
        is_known = isinstance(text, str) and re.fullmatch(known, text)
        path = text.format(**dict(zip(names, (chunk, file))), video_key=video_key) if is_known else ".."
        if os.path.isabs(path) or ".." in path.split("/"):
            raise UserError(
                f"{self.root}/meta/info.json: {template} is {shortened(text)}; expected a path below the folder with "
                f"{' and '.join(names)} and, of videos, video_key, such as {{{names[0]}:03d}}; {_COPY}"
            )
        return os.path.join(self.root, path)

    def pattern(self, template: str, video_key: str = "") -> str:
        """Return ``data_path`` or ``video_path`` with a star for each number."""
        self.file(template, 0, 0, video_key)  # or say what is wrong with it
        named = getattr(self, template).replace("{video_key}", video_key)
        return re.sub(r"\{\w+(:\w+)?\}", "*", named)

    @property
    def tasks(self) -> dict[int, str]:
        """Return the texts of the tasks by their ``task_index``; none if the folder has no list of them."""
        return _tasks(self.root, self.version)


@dataclass(frozen=True)
class Camera:
    key: str
    is_video: bool
    frame_size: tuple[int, int]


def _is_length(value: object) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _depth(feature: dict[str, Any]) -> bool:
    info = feature.get("info", feature.get("video_info"))
    return isinstance(info, dict) and bool(info.get("video.is_depth_map") or info.get("is_depth_map"))


@lru_cache
def _tasks(root: str, version: str) -> dict[int, str]:
    listed, table = Path(root) / "meta" / "tasks.jsonl", Path(root) / "meta" / "tasks.parquet"
    if version == "v2." and listed.is_file():
        rows = read_json_lines(listed, _COPY)
        return {
            row[TASK]: row["task"] for row in rows if _is_length(row.get(TASK)) and isinstance(row.get("task"), str)
        }
    if version == "v2." or not table.is_file():
        return {}
    return dict(zip(map(int, numbers(str(table), TASK)[:, 0]), texts(str(table), "task", "__index_level_0__")))


class VideoPlace(NamedTuple):
    """Position of an episode in a video file, from meta/episodes. Times are in seconds."""

    chunk: int
    file: int
    start: float
    first: int  # number of its first frame, if the file holds exactly the episodes of meta/episodes
    file_start: float  # start of the first episode in the file
    file_frames: int  # total over the episodes in the file
    doubt: bool = False  # whether the times are too short for the frames, or two episodes overlap


@dataclass(frozen=True, eq=False)
class EpisodeTable:
    """Positions of all episodes: arrays of equal length, in order of episode numbers. Unknown entries are -1."""

    number: NDArray[np.int64]
    num_frames: NDArray[np.int64]
    data_chunk: NDArray[np.int64]
    data_file: NDArray[np.int64]
    video: NDArray[np.void] | None  # VideoPlaces; None if the pictures are in the data files
    num_listed: int  # with those that are left out, as their files are not there

    @classmethod
    def load(cls, info: LeRobotInfo, camera: Camera) -> EpisodeTable:
        return (cls._of_lines if info.version == "v2." else cls._of_parquet)(info, camera)

    @classmethod
    def _of_parquet(cls, info: LeRobotInfo, camera: Camera) -> EpisodeTable:
        video = f"videos/{camera.key}/"
        numbers = [EPISODE, "length", "data/chunk_index", "data/file_index"]
        numbers += [video + "chunk_index", video + "file_index"] if camera.is_video else []
        times = [video + "from_timestamp", video + "to_timestamp"] if camera.is_video else []
        columns = _episode_columns(Path(info.root), numbers + times)
        number, length, chunk, file, *video_file = (_whole(info.root, name, columns[name]) for name in numbers)
        _check_lengths(info.root, number, length)
        spans = [columns[name].astype(np.float64) for name in times]
        table = _video_table(info.fps, length, *video_file, *spans) if camera.is_video else None
        return cls(number, length, chunk, file, table, len(number))

    @classmethod
    def _of_lines(cls, info: LeRobotInfo, camera: Camera) -> EpisodeTable:
        """Build the table of version 2, without the episodes of which a file is not there."""
        lines = read_json_lines(Path(info.root) / "meta" / "episodes.jsonl", _COPY)
        number, length = (_listed(info.root, lines, name) for name in (EPISODE, "length"))
        _check_lengths(info.root, number, length)
        chunk = number // info.chunks_size
        paths = [[info.file("data_path", *place) for place in zip(chunk, number)]]
        if camera.is_video:
            paths += [[info.file("video_path", *place, video_key=camera.key) for place in zip(chunk, number)]]
        there = np.flatnonzero(np.logical_and.reduce([_exist(each) for each in paths]))
        if not len(there):
            raise UserError(
                f"{info.root}: none of the {len(lines)} episodes of meta/episodes.jsonl has its files, such as "
                f"{' and '.join(each[0] for each in paths if each)}; copy them too"
            )
        chosen = there[np.argsort(number[there], kind="stable")]
        number, length, chunk = number[chosen], length[chosen], chunk[chosen]
        if (np.diff(number) == 0).any():
            raise UserError(f"{info.root}: meta/episodes.jsonl lists an episode twice; {_COPY}")
        zeros = np.zeros(len(chosen))
        table = _video_table(info.fps, length, chunk, number, zeros, length / info.fps) if camera.is_video else None
        return cls(number, length, chunk, number, table, len(lines))


def _check_lengths(root: str, number: NDArray[Any], length: NDArray[Any]) -> None:
    if (number < 0).any() or (length < 1).any():
        raise UserError(f"{root}: meta/episodes gives no number or length for some episodes; copy it again")


def _listed(root: str, lines: Sequence[dict[str, Any]], name: str) -> NDArray[np.int64]:
    values = [line.get(name) for line in lines]
    if not all(value is None or type(value) in (int, float) for value in values):
        raise UserError(f"{root}: {name} in meta/episodes.jsonl holds other than numbers; copy it again")
    return _whole(root, name, np.array([np.nan if value is None else float(value) for value in values]))


def _exist(paths: Sequence[str]) -> NDArray[np.bool_]:
    """Tell which files are there. Lists their folders: a question for each of 100000 files is slow over a network."""
    names = lru_cache(lambda folder: frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset())
    return np.array([os.path.basename(path) in names(os.path.dirname(path)) for path in paths], bool)


def _video_table(
    fps: float, length: NDArray[Any], chunk: NDArray[Any], file: NDArray[Any], start: NDArray[Any], stop: NDArray[Any]
) -> NDArray[np.void]:
    """Build the video entries of all episodes from their files and their first and last times."""
    known = (chunk >= 0) & (file >= 0) & np.isfinite(start) & np.isfinite(stop)
    table = np.zeros(len(length), list(get_type_hints(VideoPlace).items()))
    table["chunk"], table["file"], table["start"] = np.where(known, chunk, -1), file, start
    table["file_start"], table["file_frames"] = start, length
    table["doubt"] = ~((stop - start) * fps > length - 0.5)
    order = np.lexsort((start, file, chunk))
    order = order[known[order]]
    changes = np.flatnonzero(np.diff(file[order]) | np.diff(chunk[order])) + 1
    for same in np.split(order, changes) if len(order) else []:
        ends = np.cumsum(length[same])
        table["first"][same] = ends - length[same]
        table["file_start"][same], table["file_frames"][same] = start[same[0]], ends[-1]
        overlap = np.flatnonzero(np.diff(start[same]) * fps < length[same[:-1]] - 0.5)
        table["doubt"][same[overlap]] = table["doubt"][same[overlap + 1]] = True
    return table


def _whole(root: str, name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """Convert a column to integers. Pandas stores missing integers as NaN, which becomes -1."""
    whole = values.astype(np.float64)
    known = ~np.isnan(whole)
    whole = np.where(known, whole, 0)
    if (whole != np.floor(whole)).any() or (whole < 0).any() or (whole >= _LARGEST).any():
        raise UserError(f"{root}: {name} in meta/episodes holds other than whole numbers from 0 on; copy it again")
    return np.where(known, whole, -1).astype(np.int64)


def _episode_columns(root: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read columns of all files of meta/episodes, sorted by episode number."""
    paths = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{root}: no meta/episodes/*/*.parquet; copy the whole folder")
    parts = [{name: numbers(str(path), name)[:, 0] for name in names} for path in paths]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    order = np.argsort(columns[EPISODE], kind="stable")
    if not len(order):
        raise UserError(f"{root}: meta/episodes lists no episodes; record some")
    return {name: values[order] for name, values in columns.items()}


@dataclass(frozen=True, eq=False)
class LeRobotEpisodes:
    """All episodes of a folder, from one camera. Holds numbers only; files are opened on reading."""

    info: LeRobotInfo
    camera: Camera
    table: EpisodeTable
    action_key: str = ACTION

    @classmethod
    def open_folder(cls, folder: Path, camera: str | None = None, action_key: str | None = None) -> LeRobotEpisodes:
        """Read the folder's metadata. Defaults: the first camera by name, and the actions under ``action``.

        Raises:
            UserError: the folder is not in this format, or has no such camera or actions.
        """
        info = LeRobotInfo.load(folder)
        chosen = info.camera(camera)
        if action_key is not None and info.dimension(action_key) is None:
            raise UserError(f"{folder}: {info.no_action(action_key)}")
        require("pyarrow", *(["av"] if chosen.is_video else []))
        table = EpisodeTable.load(info, chosen)
        _say_what_is_missing(info.root, table.num_listed - len(table.number), table.num_listed)
        return cls(info, chosen, table, action_key or ACTION)

    def __len__(self) -> int:
        return len(self.table.number)

    def open(self, index: int) -> LeRobotEpisode:
        place = self._rows(index), self._video(index)
        return LeRobotEpisode(self.name(index), self.info, self.camera, self.action_key, *place)

    def numbered(self, number: int) -> LeRobotEpisode:
        """Open the episode with this number, which no index stands for: cameras may lack different episodes."""
        found = np.flatnonzero(self.table.number == number)
        if not len(found):
            raise UserError(f"{self.info.root}#{number}: its files of {self.camera.key} are not there; copy them too")
        return self.open(int(found[0]))

    def name(self, index: int) -> str:
        return f"{self.info.root}#{self.table.number[index]}"

    def files(self, index: int) -> list[str]:
        """Return the paths of the data file and of the camera's video, if there is one, as meta/episodes names them."""
        files = [self.info.file("data_path", int(self.table.data_chunk[index]), int(self.table.data_file[index]))]
        if self.table.video is not None:
            place = VideoPlace(*self.table.video[index].item())
            files.append(self.info.file("video_path", place.chunk, place.file, video_key=self.camera.key))
        return files

    def _rows(self, index: int) -> Rows:
        """Find the rows in the data file that meta/episodes names, or in the next one, as it may be one behind."""
        number, length = int(self.table.number[index]), int(self.table.num_frames[index])
        chunk, file = int(self.table.data_chunk[index]), int(self.table.data_file[index])
        if min(chunk, file) < 0:
            raise UserError(f"{self.name(index)}: meta/episodes names no data file for it; leave the episode out")
        named = _existing(self.info.file("data_path", chunk, file))
        following = (self.info.file("data_path", *place) for place in ((chunk, file + 1), (chunk + 1, 0)))
        for path in (named, *filter(os.path.isfile, following)):
            first, count = rows_holding(path, EPISODE, number)
            if count == length:
                return Rows(path, first, count)
            if count:
                raise UserError(f"{path}: has {count} rows of episode {number}, not {length} as meta/episodes; {_COPY}")
        raise UserError(f"{named}: no rows of episode {number}, though meta/episodes says so; {_COPY}")

    def _video(self, index: int) -> VideoRows | None:
        if self.table.video is None:
            return None
        place = VideoPlace(*self.table.video[index].item())
        if place.chunk < 0:
            raise UserError(f"{self.name(index)}: has no video of {self.camera.key}; choose another camera")
        if place.doubt:
            raise UserError(
                f"{self.name(index)}: its times in meta/episodes fit no {self.table.num_frames[index]} frames of "
                f"{self.camera.key}, or another episode has some of them; {_COPY}"
            )
        path = self.info.file("video_path", place.chunk, place.file, video_key=self.camera.key)
        return VideoRows(self.name(index), _existing(path), place, self.info.fps)


@lru_cache  # once, though training opens a folder for each split
def _say_what_is_missing(root: str, missing: int, listed: int) -> None:
    if missing and multiprocessing.parent_process() is None:  # workers of converters open it, too
        logger.warning("%s: left out %d of %d episodes, whose files are not there", root, missing, listed)


def _existing(path: str) -> str:
    if not os.path.isfile(path):
        raise UserError(f"{path}: missing, though meta/episodes says that episodes are in it; copy it again")
    return path


@dataclass(frozen=True)
class Rows:
    """The rows of one episode in a data file."""

    path: str
    first: int
    count: int

    def numbers(self, name: str, dimension: int) -> NDArray[Any]:
        """Read a column as (N, dimension)."""
        return numbers(self.path, name, dimension, self.first, self.count)


@dataclass(frozen=True)
class VideoRows:
    """The frames of one episode in a video file."""

    episode: str  # name in messages
    path: str
    place: VideoPlace
    fps: float

    def frames(self, timestamps: NDArray[np.float64], indices: Indices) -> NDArray[np.uint8]:
        """Read the frames at these increasing indices; every row must have a frame.

        Raises:
            UserError: order and time of the frames disagree by more than half a frame, or a frame is damaged.
        """
        video = shared_video(self.path)
        return video.frames_numbered(self.numbers(video.times, timestamps)[indices])

    def numbers(self, times: NDArray[np.float64], timestamps: NDArray[np.float64]) -> Indices:
        """Match the rows of the episode to frames of the file by time; return a frame number for each row.

        If a file does not begin at its first episode's time, the order of frames decides, provided their number fits.
        """
        place, half = self.place, 0.5 / self.fps
        complete = len(times) == place.file_frames
        shift = times[0] - place.file_start
        if abs(shift) <= half or (shift < 0 and not complete):  # earlier frames belong to unlisted episodes
            shift = 0.0
        elif not complete:
            raise self._doubt(
                f"the video begins at {times[0]:.3f} s instead of {place.file_start:.3f} s and has {len(times)} frames "
                f"instead of {place.file_frames}"
            )
        wanted, shown = place.start + timestamps, times - shift
        later = np.clip(np.searchsorted(shown, wanted), 1, max(len(shown) - 1, 1))
        nearest = later - (wanted - shown[later - 1] <= shown[np.minimum(later, len(shown) - 1)] - wanted)
        nearest = np.minimum(nearest, len(shown) - 1)
        far = np.flatnonzero(~(np.abs(shown[nearest] - wanted) <= half))
        if len(far):
            row = int(far[0])
            raise self._doubt(
                f"row {row} has no frame within half a frame of {wanted[row]:.3f} s; the nearest is at "
                f"{shown[nearest[row]]:.3f} s"
            )
        stride = int(nearest[1] - nearest[0]) if len(nearest) > 1 else 1
        first = place.first if complete else int(nearest[0])
        in_order = first + (1 if complete else max(stride, 1)) * np.arange(len(nearest))
        other = np.flatnonzero(nearest != in_order)
        if len(other):
            row = int(other[0])
            raise self._doubt(
                f"row {row} is frame {in_order[row]} by its order, but frame {nearest[row]} by its time, "
                f"{wanted[row]:.3f} s"
            )
        return nearest

    def _doubt(self, reason: str) -> UserError:
        return UserError(f"{self.episode}: which frames of {self.path} are its rows' is unsure: {reason}; {_COPY}")


@dataclass(frozen=True)
class LeRobotEpisode(Episode):
    """One episode of a LeRobot folder, called folder#episode in messages."""

    info: LeRobotInfo
    camera: Camera
    action_key: str
    rows: Rows
    video: VideoRows | None  # None if the pictures are in the data file

    @property
    def num_frames(self) -> int:
        return self.rows.count

    @property
    def frame_size(self) -> tuple[int, int]:
        return self.camera.frame_size

    def dimension(self, name: str) -> int | None:
        return self.info.dimension(self.info.series(self.action_key).get(name, ""))

    def read(self, indices: Indices) -> NDArray[np.uint8]:
        distinct, place = np.unique(indices, return_inverse=True)
        if self.video is None:
            stored = pictures(self.rows.path, self.camera.key, self.rows.first + distinct)
            frames = np.stack([self._decoded(picture) for picture in stored])
        else:
            frames = self.video.frames(self.rows.numbers(TIMESTAMP, 1)[:, 0].astype(np.float64), distinct)
        if frames.shape[1:3] != self.frame_size:
            raise self._other_size(frames.shape[1:3])
        return frames if np.array_equal(distinct, indices) else frames[place]

    def series(self, name: str) -> NDArray[np.float32] | None:
        """Read an array of :data:`SERIES`, flattened to one row a frame."""
        key = self.info.series(self.action_key).get(name)
        if key is None:
            return None
        values = self.rows.numbers(key, self.info.dimension(key) or 0).astype(np.float32)
        check_plausible(values, f"{self.path}: {key!r}")
        return values

    def content_checksum(self) -> int:
        """Return a CRC-32 of the actions, rewards and successes, and of the size of the file that the frames are in."""
        found = zlib.crc32(b"%d" % os.path.getsize((self.video or self.rows).path))
        for name, key in self.info.series(self.action_key).items():
            if name in CLIP_SERIES:
                found = zlib.crc32(self.rows.numbers(key, self.info.dimension(key) or 0).tobytes(), found)
        return found

    def texts(self) -> NDArray[np.str_] | None:
        """Return the text of each frame's task (N,), empty where it has none; None if the folder has no texts."""
        if TASK not in self.info.features or not (tasks := self.info.tasks):
            return None
        return np.array([tasks.get(int(task), "") for task in self.rows.numbers(TASK, 1)[:, 0]], np.str_)

    @property
    def action_names(self) -> tuple[str, ...] | None:
        names = self.info.features.get(self.action_key, {}).get("names")
        while isinstance(names, dict) or (isinstance(names, list) and names[:1] and isinstance(names[0], list)):
            names = next(iter(names.values() if isinstance(names, dict) else names), None)  # {"motors": [...]}, [[...]]
        return tuple(map(str, names)) if isinstance(names, list) and len(names) == self.action_dim else None

    def describe(self) -> tuple[StoredArray, ...]:
        roles = {self.camera.key: "frames", self.action_key: "action", REWARD: "reward", SUCCESS: "success"}
        return tuple(
            StoredArray(key, tuple(feature["shape"]), feature["dtype"], f"read as {roles.get(key, 'nothing')}")
            for key, feature in self.info.features.items()
        )

    def remarks(self) -> tuple[str, ...]:
        if self.action_dim is not None:
            return ()
        return (f"{self.info.no_action(self.action_key)}; choose with lerobot:<folder>@action=<feature>",)

    def _decoded(self, picture: bytes) -> NDArray[np.uint8]:
        try:
            with Image.open(io.BytesIO(picture)) as image:
                if image.size[::-1] != self.frame_size:  # checked before decoding, as the header may claim any size
                    raise self._other_size(image.size[::-1])
                return np.asarray(image.convert("RGB"))
        except UserError:
            raise
        except Exception as error:  # Pillow's decoders raise exceptions of any type
            raise UserError(f"{self.path}: a picture of {self.camera.key} is damaged ({first_line(error)})") from error

    def _other_size(self, size: tuple[int, ...]) -> UserError:
        expected = f"but meta/info.json says {self.frame_size}"
        return UserError(f"{self.path}: frames of {self.camera.key} have size {size}, {expected}")
