"""Reading LeRobot v3.0 folders as episodes, without the lerobot package and without conversion.

    meta/info.json                           features, frames per second, where the files are
    meta/episodes/chunk-000/file-000.parquet an episode a row: its rows in the data files, its times in the video files
    data/chunk-000/file-000.parquet          a frame a row: timestamp, action, next.reward, pictures stored one by one
    videos/<key>/chunk-000/file-000.mp4      many episodes one after the other

Row i of ``action`` is what was done at frame i, and row i of ``next.reward`` what it earned, as in our npz episodes.
Only what is asked for is read: the rows of an episode, and the frames of a clip from the nearest key frame on.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ivideogpt.data.parquet_files import numbers, pictures
from ivideogpt.data.segments import Indices
from ivideogpt.data.video_files import shared_video
from ivideogpt.errors import UserError, require

VERSION = "v3.0"
ACTION = "action"
REWARD = "next.reward"
TIMESTAMP = "timestamp"
EPISODE = "episode_index"
# Arrays of our npz episodes and the features that hold the same.
SERIES = {"action": ACTION, "reward": REWARD, "success": "next.success", "state": "observation.state"}


@dataclass(frozen=True)
class LeRobotInfo:
    """``meta/info.json`` of a folder."""

    root: str
    fps: float
    features: dict[str, dict[str, Any]]
    data_path: str
    video_path: str

    @classmethod
    def load(cls, root: str | os.PathLike[str]) -> LeRobotInfo:
        """Raises UserError unless the folder is in the format's version 3."""
        path = Path(root) / "meta" / "info.json"
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise UserError(
                f"{root}: no LeRobot folder, there is no {path}; give the folder that holds meta/"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not readable as JSON ({error}); copy or record the folder again") from error
        if not isinstance(content, dict):
            raise UserError(f"{path}: expected an object with codebase_version and features; copy the folder again")
        _check_version(path, str(content.get("codebase_version")))
        try:
            return cls(
                str(root),
                float(content["fps"]),
                content["features"],
                content["data_path"],
                content.get("video_path") or "",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: no usable entry {error}; copy or record the folder again") from error

    @property
    def cameras(self) -> list[str]:
        """Keys of the pictures by name; maps of depth are none."""
        return sorted(
            key
            for key, feature in self.features.items()
            if feature.get("dtype") in ("video", "image") and not _depth(feature)
        )

    def camera(self, key: str | None = None) -> Camera:
        """This camera, or the first one."""
        if not self.cameras or (key is not None and key not in self.cameras):
            raise UserError(f"{self.root}: no camera {key or ''}; it has {', '.join(self.cameras) or 'none'}")
        key = key or self.cameras[0]
        feature = self.features[key]
        return Camera(key, feature["dtype"] == "video", _frame_size(feature))

    def dimension(self, key: str) -> int | None:
        """Numbers a frame of this feature; None if there is none of them."""
        feature = self.features.get(key)
        if feature is None:
            return None
        if len(feature["shape"]) != 1:
            raise UserError(f"{self.root}: {key} has shape {feature['shape']}; expected one number or a row of them")
        return int(feature["shape"][0])


@dataclass(frozen=True)
class Camera:
    key: str
    is_video: bool
    frame_size: tuple[int, int]


def _check_version(path: Path, version: str) -> None:
    if version.startswith("v2"):
        raise UserError(
            f"{path}: LeRobot format {version}; expected {VERSION}; convert the folder with "
            "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30"
        )
    if not version.startswith("v3"):
        raise UserError(f"{path}: codebase_version is {version}; expected {VERSION}")


def _depth(feature: dict[str, Any]) -> bool:
    info = feature.get("info") or {}
    return bool(info.get("video.is_depth_map") or info.get("is_depth_map"))


def _frame_size(feature: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a shape whose channels come last or first: its names say so, or only they are three."""
    shape = feature["shape"]
    names = list(feature.get("names") or ())
    channels_first = str(names[0]).startswith("channel") if names else shape[0] == 3 != shape[2]
    return (shape[1], shape[2]) if channels_first else (shape[0], shape[1])


@dataclass(frozen=True, eq=False)
class EpisodeTable:
    """Where each episode is: arrays of one length, in order of the episodes' numbers."""

    number: NDArray[np.int64]
    first_row: NDArray[np.int64]  # within its data file
    num_frames: NDArray[np.int64]
    data_chunk: NDArray[np.int64]
    data_file: NDArray[np.int64]
    video_chunk: NDArray[np.int64]  # zeros if the pictures are in the data files
    video_file: NDArray[np.int64]
    video_start: NDArray[np.float64]  # seconds

    @classmethod
    def load(cls, info: LeRobotInfo, camera: Camera) -> EpisodeTable:
        video = f"videos/{camera.key}/"
        names = [EPISODE, "length", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index"]
        if camera.is_video:
            names += [video + "chunk_index", video + "file_index", video + "from_timestamp"]
        columns = _episode_columns(Path(info.root), names)
        first, num_frames = columns["dataset_from_index"], columns["length"]
        if (columns["dataset_to_index"] - first != num_frames).any() or (num_frames < 1).any():
            raise UserError(f"{info.root}: lengths and rows of the episodes in meta/episodes disagree; copy it again")
        nothing = np.zeros_like(first)
        return cls(
            columns[EPISODE],
            first - _first_of_file(first, columns["data/chunk_index"], columns["data/file_index"]),
            num_frames,
            columns["data/chunk_index"],
            columns["data/file_index"],
            columns.get(video + "chunk_index", nothing),
            columns.get(video + "file_index", nothing),
            columns.get(video + "from_timestamp", nothing).astype(np.float64),
        )


def _episode_columns(root: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """These columns of all files of meta/episodes, sorted by the episodes' numbers."""
    paths = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{root}: no meta/episodes/*/*.parquet; copy the whole folder")
    parts = [{name: numbers(str(path), name)[:, 0] for name in names} for path in paths]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    order = np.argsort(columns[EPISODE], kind="stable")
    if not len(order):
        raise UserError(f"{root}: meta/episodes lists no episodes; record some")
    return {name: values[order] for name, values in columns.items()}


def _first_of_file(first: NDArray[np.int64], chunk: NDArray[np.int64], file: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each episode the number, among all rows of the dataset, of the first row of its data file."""
    _, which = np.unique(np.stack([chunk, file]), axis=1, return_inverse=True)
    smallest = np.full(which.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, which, first)
    return smallest[which]


@dataclass(frozen=True, eq=False)
class LeRobotEpisodes:
    """All episodes of a folder, seen by one camera. Holds numbers only; files are opened by whoever reads."""

    info: LeRobotInfo
    camera: Camera
    table: EpisodeTable

    @classmethod
    def open_folder(cls, folder: Path, camera: str | None = None) -> LeRobotEpisodes:
        """Reads the folder's metadata. Without a camera: the first by name.

        Raises:
            UserError: the folder is none of this format, or has no such camera.
        """
        info = LeRobotInfo.load(folder)
        chosen = info.camera(camera)
        require("pyarrow", *(["av"] if chosen.is_video else []))
        return cls(info, chosen, EpisodeTable.load(info, chosen))

    def __len__(self) -> int:
        return len(self.table.number)

    def open(self, index: int) -> LeRobotEpisode:
        row = {field.name: getattr(self.table, field.name)[index].item() for field in fields(self.table)}
        video_path = ""
        if self.camera.is_video:
            video_path = self._file(
                self.info.video_path, row["video_chunk"], row["video_file"], video_key=self.camera.key
            )
        return LeRobotEpisode(
            self.name(index),
            self.info,
            self.camera,
            Rows(
                self._file(self.info.data_path, row["data_chunk"], row["data_file"]),
                row["number"],
                row["first_row"],
                row["num_frames"],
            ),
            video_path,
            row["video_start"],
        )

    def name(self, index: int) -> str:
        return f"{self.info.root}#{self.table.number[index]}"

    def _file(self, template: str, chunk: int, file: int, **names: str) -> str:
        path = os.path.join(self.info.root, template.format(chunk_index=chunk, file_index=file, **names))
        if not os.path.isfile(path):
            raise UserError(f"{path}: missing, though meta/episodes says that episodes are in it; copy it again")
        return path


@dataclass(frozen=True)
class Rows:
    """The rows of one episode in a data file."""

    path: str
    episode: int
    first: int
    count: int

    def numbers(self, name: str, dimension: int) -> NDArray[Any]:
        """A column as (N, dimension)."""
        self._check_place()
        return self._of(name, dimension)

    def pictures(self, name: str, indices: Indices) -> list[bytes]:
        """Encoded pictures at these indices, which rise."""
        self._check_place()
        return pictures(self.path, name, self.first + indices)

    def _check_place(self) -> None:
        """Rows counted wrongly would give actions of other frames, which nobody would notice."""
        if (self._of(EPISODE, 1) != self.episode).any():
            raise UserError(
                f"{self.path}: rows {self.first} to {self.first + self.count - 1} are not those of episode "
                f"{self.episode}, as meta/episodes says; copy the folder again"
            )

    def _of(self, name: str, dimension: int) -> NDArray[Any]:
        values = numbers(self.path, name, dimension, self.first, self.count)
        if len(values) != self.count:
            raise UserError(
                f"{self.path}: ends before episode {self.episode} does; copy the folder again or leave the episode out"
            )
        return values


@dataclass(frozen=True)
class LeRobotEpisode:
    """An ``EpisodeReader`` of one episode."""

    path: str  # for messages: folder#episode
    info: LeRobotInfo
    camera: Camera
    rows: Rows
    video_path: str
    video_start: float

    @property
    def num_frames(self) -> int:
        return self.rows.count

    @property
    def frame_size(self) -> tuple[int, int]:
        return self.camera.frame_size

    @property
    def action_dim(self) -> int | None:
        return self.info.dimension(ACTION)

    @property
    def has_rewards(self) -> bool:
        return REWARD in self.info.features

    def read(self, indices: Indices) -> NDArray[np.uint8]:
        distinct, place = np.unique(indices, return_inverse=True)
        frames = self._video_frames(distinct) if self.camera.is_video else self._stored_frames(distinct)
        if frames.shape[1:3] != self.frame_size:
            raise UserError(
                f"{self.path}: frames of {self.camera.key} have size {frames.shape[1:3]}, but meta/info.json says "
                f"{self.frame_size}; record the dataset at one size"
            )
        return frames if len(distinct) == len(indices) and (place == np.arange(len(place))).all() else frames[place]

    def actions(self, indices: Indices) -> NDArray[np.float32] | None:
        values = self.series(ACTION)
        return None if values is None else values[indices]

    def rewards(self, indices: Indices) -> NDArray[np.float32] | None:
        values = self.series(REWARD)
        return None if values is None else values[indices, 0]

    def series(self, key: str) -> NDArray[np.float32] | None:
        """All rows (N, D) of a feature of numbers; None if the dataset has no such feature."""
        dimension = self.info.dimension(key)
        if dimension is None:
            return None
        values = self.rows.numbers(key, dimension).astype(np.float32)
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise UserError(
                f"{self.path}: {key!r} holds NaN or infinite values (first in row {row}); "
                "repair or leave out the episode"
            )
        return values

    def _video_frames(self, indices: Indices) -> NDArray[np.uint8]:
        timestamps = self.rows.numbers(TIMESTAMP, 1)[:, 0].astype(np.float64)
        video = shared_video(self.video_path)
        return video.frames_at(self.video_start + timestamps[indices], tolerance=0.5 / self.info.fps)

    def _stored_frames(self, indices: Indices) -> NDArray[np.uint8]:
        frames = [self._decoded(picture) for picture in self.rows.pictures(self.camera.key, indices)]
        if len({frame.shape for frame in frames}) > 1:
            raise UserError(f"{self.path}: pictures of {self.camera.key} differ in size; record them at one size")
        return np.stack(frames)

    def _decoded(self, picture: bytes) -> NDArray[np.uint8]:
        try:
            with Image.open(io.BytesIO(picture)) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{self.path}: a picture of {self.camera.key} is damaged ({error})") from error
