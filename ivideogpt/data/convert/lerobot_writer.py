"""Write LeRobot v3.0 folders from encoded episodes. lerobot.py describes the format."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.formats.lerobot import EPISODE, TIMESTAMP, VERSION
from ivideogpt.files import write_json

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES_PER_CHUNK = 1000
DATA_FILE_BYTES, VIDEO_FILE_BYTES = 100 << 20, 200 << 20  # where a new file is begun
EPISODES_PER_FILE = 10000
EPISODES_AT_ONCE = 1000  # rows per group of meta/episodes: a group per episode would exceed the rows in size

Series = Mapping[str, NDArray[Any]]


class Statistics(NamedTuple):
    """Statistics of one feature over the episodes so far."""

    num_frames: int
    minimum: NDArray[Any]
    maximum: NDArray[Any]
    sum: NDArray[Any]
    squares: NDArray[Any]

    @classmethod
    def of_rows(cls, rows: NDArray[Any]) -> Self:
        rows = rows.astype(np.float64)
        return cls(len(rows), rows.min(axis=0), rows.max(axis=0), rows.sum(axis=0), (rows**2).sum(axis=0))

    @classmethod
    def of_pixels(cls, num_frames: int, pixels: NDArray[np.float64]) -> Self:
        minimum, maximum, mean, std = pixels[..., None, None]  # (3, 1, 1) each, as in LeRobot
        return cls(num_frames, minimum, maximum, num_frames * mean, num_frames * (std**2 + mean**2))

    def joined(self, other: Statistics) -> Statistics:
        join: tuple[Any, ...] = (np.add, np.minimum, np.maximum, np.add, np.add)
        return Statistics(*(function(own, others) for function, own, others in zip(join, self, other)))

    def lists(self) -> dict[str, list[Any]]:
        mean = self.sum / self.num_frames
        std = np.sqrt(np.maximum(self.squares / self.num_frames - mean**2, 0))
        values = {"min": self.minimum, "max": self.maximum, "mean": mean, "std": std}
        return {name: value.tolist() for name, value in values.items()} | {"count": [int(self.num_frames)]}


@dataclass
class Place:
    """File for the next episode: files are limited in size, folders in number of files."""

    limit: float
    chunk: int = 0
    file: int = 0
    size: float = 0

    def begins_file(self, size: float) -> bool:
        """Reserve ``size``; return whether it begins a new file."""
        is_first = self.size == 0 and (self.chunk, self.file) == (0, 0)
        if not is_first and self.size + size > self.limit:
            self.chunk, self.file = divmod(self.chunk * FILES_PER_CHUNK + self.file + 1, FILES_PER_CHUNK)
            self.size = 0
            is_first = True
        self.size += size
        return is_first

    def path(self, root: Path, template: str, **names: str) -> Path:
        """Return the path of the current file, in a folder that exists."""
        path = root / template.format(chunk_index=self.chunk, file_index=self.file, **names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class TableFiles:
    """A sequence of parquet files of limited size."""

    def __init__(self, root: Path, template: str, limit: float) -> None:
        self._root, self._template = root, template
        self.place = Place(limit)
        self._writer: Any = None

    def add(self, table: Any, size: float) -> None:
        import pyarrow.parquet

        if self.place.begins_file(size):
            self.close()
            self._writer = pyarrow.parquet.ParquetWriter(self.place.path(self._root, self._template), table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class VideoFiles:
    """The mp4 files of a camera: encoded episodes are concatenated without encoding them again."""

    def __init__(self, root: Path, key: str, fps: int) -> None:
        self._root, self._key, self._fps = root, key, fps
        self.place = Place(VIDEO_FILE_BYTES)
        self._container: Any = None
        self._stream: Any = None
        self._num_frames = 0  # in the current file
        self.feature: dict[str, Any] = {}

    def add(self, content: bytes, num_frames: int) -> dict[str, Any]:
        """Append an episode; return its position as columns of meta/episodes."""
        import av

        with av.open(io.BytesIO(content)) as source:
            stream = source.streams.video[0]
            if self.place.begins_file(len(content)):
                self._begin(stream)
            shift = round(self._num_frames / self._fps / stream.time_base)
            for packet in source.demux(stream):
                if packet.dts is None:  # end of the stream
                    continue
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = self._stream
                self._container.mux(packet)
        start, self._num_frames = self._num_frames, self._num_frames + num_frames
        places = {"chunk_index": self.place.chunk, "file_index": self.place.file}
        times = {"from_timestamp": start / self._fps, "to_timestamp": self._num_frames / self._fps}
        return {f"videos/{self._key}/{name}": value for name, value in (places | times).items()}

    def _begin(self, template: Any) -> None:
        import av

        self.close()
        self._container = av.open(str(self.place.path(self._root, VIDEO_PATH, video_key=self._key)), "w")
        self._stream = self._container.add_stream_from_template(template, opaque=True)
        self._num_frames = 0
        self.feature = {
            "dtype": "video",
            "shape": [template.height, template.width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": template.height,
                "video.width": template.width,
                "video.codec": template.codec_context.codec.canonical_name,
                "video.pix_fmt": template.pix_fmt,
                "video.is_depth_map": False,
                "video.fps": self._fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }

    def close(self) -> None:
        if self._container is not None:
            self._container.close()


class LeRobotWriter:
    """Writer that takes episodes one by one; the folder is valid after :meth:`finish`."""

    def __init__(self, root: Path, fps: int) -> None:
        self.root, self.fps = root, fps
        self._data = TableFiles(root, DATA_PATH, DATA_FILE_BYTES)
        self._episodes = TableFiles(root, EPISODES_PATH, EPISODES_PER_FILE)
        self._videos: dict[str, VideoFiles] = {}
        self._tasks: dict[str, int] = {}
        self._statistics: dict[str, Statistics] = {}
        self._features: dict[str, dict[str, Any]] = {}
        self._rows: list[dict[str, Any]] = []  # rows of meta/episodes that are not written yet
        self._num_episodes, self._num_frames = 0, 0

    def add(self, task: str, num_frames: int, videos: Mapping[str, bytes], pixels: Series, numbers: Series) -> None:
        """Append an encoded episode of N frames.

        Args:
            videos: mp4 file by camera key.
            pixels: minimum, maximum, mean and std (4, 3) of each colour in [0, 1], by camera key.
            numbers: arrays (N, D) by feature.
        """
        import pyarrow

        series = {**numbers, **self._counters(num_frames, task)}
        self._features = {
            key: {"dtype": str(values.dtype), "shape": [values.shape[1]], "names": None}
            for key, values in series.items()
        }
        table = pyarrow.table({key: _column(values) for key, values in series.items()})
        self._data.add(table, table.nbytes)
        statistics = {key: Statistics.of_rows(values) for key, values in series.items()}
        places: dict[str, Any] = {}
        for key, content in videos.items():
            files = self._videos.setdefault(key, VideoFiles(self.root, key, self.fps))
            places |= files.add(content, num_frames)
            statistics[key] = Statistics.of_pixels(num_frames, pixels[key])
        self._note(task, num_frames, places, statistics)

    def _counters(self, num_frames: int, task: str) -> Series:
        """Return the index columns that every LeRobot folder has."""
        frames = np.arange(num_frames)
        columns: Series = {
            TIMESTAMP: (frames / self.fps).astype(np.float32),
            "frame_index": frames,
            EPISODE: np.full(num_frames, self._num_episodes),
            "index": self._num_frames + frames,
            "task_index": np.full(num_frames, self._tasks.setdefault(task, len(self._tasks))),
        }
        return {key: values[:, None] for key, values in columns.items()}

    def _note(self, task: str, num_frames: int, places: dict[str, Any], statistics: Mapping[str, Statistics]) -> None:
        """Add the episode's row of meta/episodes."""
        for key, own in statistics.items():
            self._statistics[key] = self._statistics[key].joined(own) if key in self._statistics else own
        chunk, file = divmod(self._num_episodes // EPISODES_PER_FILE, FILES_PER_CHUNK)
        row: dict[str, Any] = {
            EPISODE: self._num_episodes,
            "tasks": [task],
            "length": num_frames,
            "data/chunk_index": self._data.place.chunk,
            "data/file_index": self._data.place.file,
            "dataset_from_index": self._num_frames,
            "dataset_to_index": self._num_frames + num_frames,
            "meta/episodes/chunk_index": chunk,
            "meta/episodes/file_index": file,
        }
        for key, own in statistics.items():
            row |= {f"stats/{key}/{name}": value for name, value in own.lists().items()}
        self._rows.append(row | places)
        self._num_episodes += 1
        self._num_frames += num_frames
        if len(self._rows) == EPISODES_AT_ONCE:
            self._write_rows()

    def _write_rows(self) -> None:
        import pyarrow

        self._episodes.add(pyarrow.Table.from_pylist(self._rows), len(self._rows))
        self._rows.clear()

    def finish(self) -> None:
        """Close all files and write the rest of meta/, info.json last."""
        if self._rows:
            self._write_rows()
        everything: list[TableFiles | VideoFiles] = [self._data, self._episodes, *self._videos.values()]
        for files in everything:
            files.close()
        meta = self.root / "meta"
        write_json(meta / "stats.json", {key: own.lists() for key, own in self._statistics.items()}, indent=4)
        _write_tasks(meta / "tasks.parquet", list(self._tasks))
        info = {
            "codebase_version": VERSION,
            "robot_type": "unknown",
            "total_episodes": self._num_episodes,
            "total_frames": self._num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": max(round(DATA_FILE_BYTES / 2**20), 1),
            "video_files_size_in_mb": max(round(VIDEO_FILE_BYTES / 2**20), 1),
            "fps": self.fps,
            "splits": {"train": f"0:{self._num_episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": self._features | {key: videos.feature for key, videos in self._videos.items()},
        }
        write_json(meta / "info.json", info, indent=4)


def _column(values: NDArray[Any]) -> Any:
    """Return the parquet column of values (N, D): lists of D numbers, or plain numbers for D = 1."""
    import pyarrow

    if values.shape[1] == 1:
        return pyarrow.array(values[:, 0])
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), values.shape[1])


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """Write tasks in pandas' format with the task as index, where LeRobot looks them up."""
    import pyarrow.parquet

    table = pyarrow.table({"task_index": np.arange(len(tasks)), "task": tasks})
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
    ]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [column | {"metadata": None} for column in columns],
        "creator": {"library": "pyarrow", "version": pyarrow.__version__},
        "pandas_version": "2.3.0",
    }
    pyarrow.parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)
