"""A LeRobot v2.1 folder written by hand: the episodes of lerobot_folder.py, each in files of its own.

Three episodes share a folder. The second camera has another size, and episodes 1 and 3 another task.
"""

import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.formats.lerobot_folder import CODECS, FPS, FRONT, HEIGHT, LENGTHS, WIDTH, WRIST, actions, level, rewards

CHUNK = 3
SIZES = {FRONT: (HEIGHT, WIDTH), WRIST: (16, 32)}
TASKS = ("push the block", "take it back")


def write_v2_folder(root: Path, version: str = "v2.1") -> Path:
    (root / "meta").mkdir(parents=True)
    info = {
        "codebase_version": version,
        "robot_type": "so100",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": len(TASKS),
        "total_videos": 2 * len(LENGTHS),
        "total_chunks": 2,
        "chunks_size": CHUNK,
        "fps": FPS,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": _features(),
    }
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    episodes = [
        {"episode_index": number, "tasks": [TASKS[number % 2]], "length": length}
        for number, length in enumerate(LENGTHS)
    ]
    _write_lines(root / "meta/episodes.jsonl", episodes)
    _write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(TASKS)])
    for number in range(len(LENGTHS)):
        chunk = f"chunk-{number // CHUNK:03d}"
        _write_data(root / f"data/{chunk}/episode_{number:06d}.parquet", number)
        for camera in (FRONT, WRIST):
            _write_video(root / f"videos/{chunk}/{camera}/episode_{number:06d}.mp4", number, camera)
    return root


def _features() -> dict:
    cameras = {
        key: {"dtype": "video", "shape": [*size, 3], "names": ["height", "width", "channel"]}
        for key, size in SIZES.items()
    }
    counters = {
        key: {"dtype": "int64", "shape": [1], "names": None}
        for key in ("frame_index", "episode_index", "index", "task_index")
    }
    return {
        "action": {"dtype": "float32", "shape": [3], "names": ["x", "y", "grip"]},
        **cameras,
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **counters,
    }


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _write_data(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count = LENGTHS[number]
    frames = np.arange(count)
    columns = {
        "action": pa.FixedSizeListArray.from_arrays(pa.array(actions(number).reshape(-1)), 3),
        "next.reward": pa.array(rewards(number)),
        "timestamp": pa.array((frames / FPS).astype(np.float32)),
        "frame_index": pa.array(frames),
        "episode_index": pa.array(np.full(count, number)),
        "index": pa.array(sum(LENGTHS[:number]) + frames),
        "task_index": pa.array(np.full(count, number % 2)),
    }
    pq.write_table(pa.table(columns), path)


def _write_video(path: Path, number: int, camera: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=CODECS[camera])
        stream.height, stream.width = SIZES[camera]
        stream.pix_fmt = "yuv420p"
        for i in range(LENGTHS[number]):
            pixels = np.full((*SIZES[camera], 3), level(number, i, camera), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
