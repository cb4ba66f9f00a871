"""Convert npz episodes to a LeRobot v3.0 folder. Needs pyarrow and av, not lerobot.

    python datasets/npz_to_lerobot.py --input_path data/my_robot --output_path my_robot_lerobot --fps 10

reads the npz files of a folder and of those below it, and writes a folder that LeRobot loads: ``action``,
``next.reward`` and ``next.success`` as they are, every array of frames as a camera ``observation.images.<array>``, many
episodes to a file. The task of an episode is the name of its folder, or what ``--task`` says. Run the same command
again to go on after an interruption: the folder appears when it is complete. With ``--shard`` episodes are encoded
only; the command without it then makes the folder.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.catalog import dataset_info, files_by_folder
from ivideogpt.data.convert.conversion import (
    FrameArgs,
    Job,
    Skipped,
    StoredSize,
    Summary,
    keep_settings,
    write_episode,
)
from ivideogpt.data.convert.lerobot_writer import LeRobotWriter
from ivideogpt.data.formats.episodes import first_readable, holds_frames, open_episode
from ivideogpt.data.formats.lerobot import SERIES
from ivideogpt.data.formats.npz_arrays import npz_members
from ivideogpt.errors import UserError, cli, first_line, require
from ivideogpt.flags import REQUIRED, option, parse

CAMERA = "observation.images."
VIDEO, PIXELS, LENGTH = "video.", "pixels.", "length"  # arrays of a part; the first two: for each camera
# Every second frame is a key frame, as in LeRobot: training reads short clips at random positions.
ENCODERS = {"h264": ("libx264", {"g": "2", "bf": "0"}), "av1": ("libsvtav1", {"g": "2", "preset": "8"})}


@dataclass(frozen=True, kw_only=True)
class ToLeRobotArgs(FrameArgs):
    """Convert npz episodes to a LeRobot v3.0 folder."""

    input_path: str = option(REQUIRED, "folder with .npz episodes in it or below")
    output_path: str = option(REQUIRED, "folder to make")
    fps: int = option(REQUIRED, "frames per second of the episodes, which npz files do not store", minimum=1)
    task: str | None = option(None, "description of the task (default: the name of each episode's folder)")
    codec: str = option("h264", "codec of the videos", choices=tuple(ENCODERS))
    crf: int = option(18, "video quality: lower values give better quality and larger files", minimum=0)

    def validate(self) -> None:
        if self.compress:
            raise UserError("--compress is for npz files; videos have --crf")


@dataclass(frozen=True)
class Contents:
    """Arrays of every episode: frame size of each camera, dimension of each series."""

    cameras: dict[str, tuple[int, int]]
    series: dict[str, int]

    @classmethod
    def of(cls, path: Path, store: StoredSize) -> Contents:
        members = npz_members(str(path))
        cameras, image_keys = {}, dataset_info(path.resolve().parent.name).image_keys
        for name, member in sorted(members.readable().items()):
            if holds_frames(member, image_keys):
                height, width = store(np.zeros((1, *member.shape[1:]), np.uint8)).shape[1:3]
                cameras[name] = (height, width)
        if not cameras:
            raise UserError(f"{path}: no array of frames; expected image (N, H, W, 3) uint8")
        episode = open_episode(path, next(iter(cameras)))
        dimensions = {name: episode.dimension(name) for name in SERIES}
        return cls(cameras, {name: dimension for name, dimension in dimensions.items() if dimension})

    def __str__(self) -> str:
        sizes = [f"{name} {height}x{width}" for name, (height, width) in self.cameras.items()]
        return ", ".join(sizes + [f"{name} of {dimension}" for name, dimension in self.series.items()])


@contextmanager
def keeping_priority() -> Iterator[None]:
    """Take back the real-time priority that SVT-AV1 gives to its caller and to its threads, if root is running it.

    A process of that priority leaves nothing to the others of the machine, also after it has encoded.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):  # it has ended
            os.sched_setscheduler(int(thread), *before)


def encode(frames: np.ndarray, codec: str, crf: int, fps: int) -> bytes:
    """Encode frames (N, H, W, 3) as an mp4 file. Raises UserError if the encoder is missing or refuses them."""
    import av

    name, options = ENCODERS[codec]
    content = io.BytesIO()
    try:
        with av.open(content, "w", format="mp4") as container:
            stream: Any = container.add_stream(name, rate=fps, options=options | {"crf": str(crf)})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1  # there is a process per core
            with keeping_priority():
                stream.codec_context.open(strict=False)
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    except (av.FFmpegError, ValueError) as error:
        raise UserError(
            f"frames {frames.shape[1]}x{frames.shape[2]} cannot be encoded as {codec} ({first_line(error)}); "
            "choose another --codec or --resize"
        ) from error
    return content.getvalue()


def encode_episode(contents: Contents, args: ToLeRobotArgs, job: Job) -> Skipped | str | None:
    """Encode one episode into a temporary file of its own; the dataset's files are assembled from these."""
    try:
        part = read_part(contents, args, Path(job.source))
        left_out = [name for name in SERIES if name in npz_members(job.source) and name not in contents.series]
    except (UserError, OSError) as error:
        return Skipped(job.source, str(error))
    write_episode(job.output, part)
    return f"left out, as they are not a row of numbers a frame: {', '.join(left_out)}" if left_out else None


def read_part(contents: Contents, args: ToLeRobotArgs, path: Path) -> dict[str, np.ndarray]:
    """Return an mp4 file with pixel statistics for each camera, and the arrays of :data:`SERIES`."""
    found = Contents.of(path, args.store)
    if found != contents:
        raise UserError(f"{path}: holds {found}; expected {contents}, as the first episode does")
    part: dict[str, np.ndarray] = {}
    for camera in contents.cameras:
        episode = open_episode(path, camera)
        frames = args.store(episode.read(np.arange(episode.num_frames)))
        if part.setdefault(LENGTH, np.array(len(frames))) != len(frames):
            raise UserError(f"{path}: {camera!r} has {len(frames)} frames, another camera {part[LENGTH]}")
        part[VIDEO + camera] = np.frombuffer(encode(frames, args.codec, args.crf, args.fps), np.uint8)
        part[PIXELS + camera] = pixel_statistics(frames)
    for name in SERIES:
        if (values := episode.series(name)) is not None:
            part[name] = values > 0 if name == "success" else values
    return part


def pixel_statistics(frames: np.ndarray) -> np.ndarray:
    """Return minimum, maximum, mean and standard deviation (4, 3) of each colour, in [0, 1]."""
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(frames[..., c].reshape(-1), minlength=256) for c in range(3)])  # (3, 256)
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))
    extremes = np.array([[levels[np.flatnonzero(c)[[0, -1]]] for c in counts]])[0]
    return np.stack([extremes[:, 0], extremes[:, 1], mean, std])


def assemble(jobs: Iterable[Job], args: ToLeRobotArgs, root: Path) -> None:
    """Write the dataset's files from the encoded parts."""
    writer = LeRobotWriter(root, args.fps)
    for job in tqdm([job for job in jobs if job.output.exists()], desc="files", unit="episode"):
        part = {name: member.all() for name, member in npz_members(str(job.output)).items()}
        cameras = [name.removeprefix(VIDEO) for name in part if name.startswith(VIDEO)]
        writer.add(
            args.task or Path(job.source).resolve().parent.name,
            int(part[LENGTH]),
            videos={CAMERA + name: part[VIDEO + name].tobytes() for name in cameras},
            pixels={CAMERA + name: part[PIXELS + name] for name in cameras},
            numbers={SERIES[name]: values for name, values in part.items() if name in SERIES},
        )
    writer.finish()


def run(args: ToLeRobotArgs) -> Summary:
    require("pyarrow", "av")
    output = Path(args.output_path)
    if output.exists():
        raise UserError(f"--output_path {output} exists already; delete it, or choose another")
    source, work = Path(args.input_path), output.with_name(f".{output.name}.partial")
    folders = [files[: args.max_num_episodes] for files in files_by_folder(source, {".npz"}).values()]
    if not folders:
        raise UserError(f"--input_path {source}: no .npz files in it or below")
    parts = work / "parts"
    jobs = [[Job(parts / path.relative_to(source), str(path), files=(path,)) for path in each] for each in folders]
    contents = first_readable(lambda path: Contents.of(path, args.store), itertools.chain(*folders))
    for name, (height, width) in contents.cameras.items():
        if height % 2 or width % 2:
            raise UserError(f"frames {name!r} are {height}x{width}; videos need even sizes: use --resize")
    keep_settings(work, args.noted("fps", "codec", "crf") | {"contents": contents})
    summary = args.run(jobs, partial(encode_episode, contents, args), "encode")
    if args.shard is not None:
        return summary
    shutil.rmtree(work / "dataset", ignore_errors=True)  # left by a run that was interrupted during assembly
    assemble(itertools.chain(*jobs), args, work / "dataset")
    (work / "dataset").replace(output)
    shutil.rmtree(work)
    return summary


def main() -> None:
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder reports errors only
    args = parse(ToLeRobotArgs)
    print(run(args))
    if args.shard is None:
        print(f"train with --dataset_path lerobot:{args.output_path}")
    else:
        print(f"after all shards, the same command without --shard makes {args.output_path} of them")


if __name__ == "__main__":
    cli(main)
