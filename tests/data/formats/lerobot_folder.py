"""A LeRobot v3.0 folder written table by table, as the format's own recorder does, without any code of ours.

Frame i of episode e is grey at ``level(e, i)``, 7 darker on the second camera; action, reward and state count alike.
Episodes 0-1 and 2-4 share a data file each, 0-2 and 3-4 a video file each, and only the first camera's videos have
their frames stored out of order.
"""

import io
import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
LENGTHS = (7, 12, 5, 9, 6)
HEIGHT, WIDTH = 32, 48
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
DATA_FILE = (0, 0, 1, 1, 1)
VIDEO_FILE = (0, 0, 0, 1, 1)
CODECS = {FRONT: {"g": "12", "bf": "2", "crf": "8"}, WRIST: {"g": "2", "bf": "0", "crf": "8"}}


def level(episode: int, frame: int, camera: str = FRONT) -> int:
    return 20 + 40 * episode + 3 * frame - (7 if camera == WRIST else 0)


def actions(episode: int) -> np.ndarray:
    """(N, 3)"""
    frames = np.arange(LENGTHS[episode])
    return np.stack([frames, np.full_like(frames, episode), frames / 7], axis=1).astype(np.float32)


def rewards(episode: int) -> np.ndarray:
    return (100 * episode + np.arange(LENGTHS[episode])).astype(np.float32)


def picture(value: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def write_folder(root: Path, stored: str = "video", scalar_actions: bool = False, version: str = "v3.0") -> Path:
    """``stored``: "video", or "image" for pictures inside of the data files."""
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    for file in (0, 1):
        _write_data(root / f"data/chunk-000/file-{file:03d}.parquet", file, starts, stored, scalar_actions)
    if stored == "video":
        for camera in (FRONT, WRIST):
            for file in (0, 1):
                _write_video(root / f"videos/{camera}/chunk-000/file-{file:03d}.mp4", file, camera)
    for file, episodes in enumerate(([0, 1, 2, 3], [4])):
        _write_episodes(root / f"meta/episodes/chunk-000/file-{file:03d}.parquet", episodes, starts, stored)
    tasks = pa.table({"task_index": [0], "__index_level_0__": ["push the block"]})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    (root / "meta/info.json").write_text(json.dumps(_info(stored, scalar_actions, version), indent=4))
    return root


def _info(stored: str, scalar_actions: bool, version: str) -> dict:
    def numbers(dtype, shape, names=None):
        return {"dtype": dtype, "shape": shape, "names": names}

    camera = {"dtype": stored, "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channels"]}
    features = {
        "action": numbers("float32", [1] if scalar_actions else [3], ["x"] if scalar_actions else ["x", "y", "grip"]),
        "observation.state": numbers("float32", [2], {"motors": ["a", "b"]}),
        WRIST: camera,
        FRONT: camera,
        "next.reward": numbers("float32", [1]),
        "next.done": numbers("bool", [1]),
        "timestamp": numbers("float32", [1]),
        "frame_index": numbers("int64", [1]),
        "episode_index": numbers("int64", [1]),
        "index": numbers("int64", [1]),
        "task_index": numbers("int64", [1]),
    }
    return {
        "codebase_version": version,
        "robot_type": "so100",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "fps": FPS,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if stored == "video"
        else None,
        "features": features,
    }


def _write_data(path: Path, file: int, starts: np.ndarray, stored: str, scalar_actions: bool) -> None:
    """The first file has one group of rows for all, the second one for each episode."""
    tables = []
    for episode in (e for e in range(len(LENGTHS)) if DATA_FILE[e] == file):
        count = LENGTHS[episode]
        frames = np.arange(count)
        columns = {
            "action": pa.array(actions(episode)[:, 0])
            if scalar_actions
            else pa.FixedSizeListArray.from_arrays(pa.array(actions(episode).reshape(-1)), 3),
            "observation.state": pa.array([[float(i), -float(i)] for i in frames], pa.list_(pa.float32())),
            "next.reward": pa.array(rewards(episode)),
            "next.done": pa.array(frames == count - 1),
            "timestamp": pa.array((frames / FPS).astype(np.float32)),
            "frame_index": pa.array(frames),
            "episode_index": pa.array(np.full(count, episode)),
            "index": pa.array(starts[episode] + frames),
            "task_index": pa.array(np.zeros(count, np.int64)),
        }
        if stored == "image":
            for camera in (FRONT, WRIST):
                pngs = [{"bytes": _png(level(episode, i, camera)), "path": f"frame-{i:06d}.png"} for i in frames]
                columns[camera] = pa.array(pngs, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        tables.append(pa.table(columns))
    with pq.ParquetWriter(path, tables[0].schema) as writer:
        for table in tables if file else [pa.concat_tables(tables)]:
            writer.write_table(table)


def _png(value: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture(value)).save(content, format="PNG")
    return content.getvalue()


def _write_video(path: Path, file: int, camera: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=CODECS[camera])
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for episode in (e for e in range(len(LENGTHS)) if VIDEO_FILE[e] == file):
            for i in range(LENGTHS[episode]):
                frame = av.VideoFrame.from_ndarray(picture(level(episode, i, camera)), format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_episodes(path: Path, episodes: list[int], starts: np.ndarray, stored: str) -> None:
    def seconds_before(episode):
        return sum(LENGTHS[e] for e in range(episode) if VIDEO_FILE[e] == VIDEO_FILE[episode]) / FPS

    rows = []
    for episode in episodes:
        row = {
            "episode_index": episode,
            "tasks": ["push the block"],
            "length": LENGTHS[episode],
            "data/chunk_index": 0,
            "data/file_index": DATA_FILE[episode],
            "dataset_from_index": int(starts[episode]),
            "dataset_to_index": int(starts[episode + 1]),
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            "stats/action/min": actions(episode).min(axis=0).tolist(),
        }
        for camera in (FRONT, WRIST) if stored == "video" else ():
            row |= {
                f"videos/{camera}/chunk_index": 0,
                f"videos/{camera}/file_index": VIDEO_FILE[episode],
                f"videos/{camera}/from_timestamp": seconds_before(episode),
                f"videos/{camera}/to_timestamp": seconds_before(episode) + LENGTHS[episode] / FPS,
            }
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), path)
