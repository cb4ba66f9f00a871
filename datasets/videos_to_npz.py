"""Convert a folder of videos, each with a table of actions beside it, to npz episodes.

    python datasets/videos_to_npz.py --input_path recordings --output_path data --dataset_name my_robot --resize 64

reads ``recordings/**/<name>.{mp4,mov,mkv,avi,webm}`` with ``<name>.csv`` or ``<name>.npy`` and writes
``data/my_robot/<name>.npz``, which trains with ``--dataset_path data --oxe_data_mixes_type folder:my_robot``. Row i of
the actions is the action at frame i, which leads to frame i + 1; the last row may be missing. Without any tables the
episodes have no actions. Run the same command again to go on after an interruption.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.convert.action_files import (
    SUFFIXES,
    ActionRows,
    Actions,
    ActionTable,
    find_action_file,
    read_actions,
)
from ivideogpt.data.convert.conversion import (
    Job,
    NpzDatasetArgs,
    Skipped,
    StoredSize,
    Summary,
    files_below,
    keep_settings,
)
from ivideogpt.data.formats.video_files import VideoFile, readable_video, rgb
from ivideogpt.errors import UserError, cli, require
from ivideogpt.flags import REQUIRED, option, parse

VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm"}
NOTED = ("action_columns", "action_offset", "fps", "step", "skipped_actions", "resize", "square_crop")
MAX_EPISODE_BYTES = 4 << 30  # limit for the frames, which are in memory until the episode is written


@dataclass(frozen=True, kw_only=True)
class VideosArgs(NpzDatasetArgs):
    """Convert a folder of videos, each with a csv or npy table of actions beside it, to npz episodes."""

    input_path: str = option(REQUIRED, "folder of videos and, beside each, <its name>.csv or .npy with its actions")
    action_columns: str | None = option(
        None,
        "names, or numbers from 0, of the action columns, such as x,y,grip (default: all; an error if one looks "
        "like time or a counter)",
    )
    action_offset: int = option(0, "row i + action_offset of a table is the action at frame i")
    fps: float | None = option(None, "frames per second to keep (default: all)")
    step: int = option(1, "keep every N-th frame", minimum=1)
    skipped_actions: str = option("drop", "treatment of the actions of dropped frames", choices=("drop", "sum", "mean"))

    def validate(self) -> None:
        if self.fps is not None and not self.fps > 0:
            raise UserError(f"--fps {self.fps}: must be above 0")
        if self.fps is not None and self.step > 1:
            raise UserError(f"--fps {self.fps} and --step {self.step} both choose frames; give one of them")

    @property
    def columns(self) -> list[str]:
        return [name.strip() for name in (self.action_columns or "").split(",") if name.strip()]


@dataclass(frozen=True)
class VideoJob(Job):
    video: Path
    actions: Path | None
    action_dim: int | None  # dimension of the dataset's actions


def find_jobs(args: VideosArgs) -> list[VideoJob | Skipped]:
    """List one job per video, by name. Either all videos have actions or none has."""
    root = Path(args.input_path)
    videos = find_videos(root)
    tables = [find_table(video) for video in videos]
    with_actions = any(tables)
    if not with_actions:
        refuse_stray_tables(root, videos[0])
    action_dim = dimension((table for table in tables if isinstance(table, Path)), args.columns)
    jobs: list[VideoJob | Skipped] = []
    for video, table in zip(videos, tables, strict=True):
        if isinstance(table, Skipped):
            jobs.append(table)
            continue
        if with_actions and table is None:
            expected = " or ".join(video.with_suffix(suffix).name for suffix in SUFFIXES)
            jobs.append(Skipped(str(video), f"no actions; expected {expected} beside it, as other videos have"))
            continue
        name = "_".join(video.relative_to(root).with_suffix("").parts)
        output = Path(args.output_path) / args.dataset / f"{name}.npz"
        jobs.append(VideoJob(output, str(video), video, table, action_dim))
    return jobs


def find_table(video: Path) -> Path | Skipped | None:
    try:
        return find_action_file(video)
    except UserError as error:  # two of them
        return Skipped(str(video), str(error))


def find_videos(root: Path) -> list[Path]:
    found = files_below(root, VIDEOS)
    if not found:
        raise UserError(f"--input_path {root}: no videos there; expected files ending in {', '.join(sorted(VIDEOS))}")
    return found


def refuse_stray_tables(root: Path, video: Path) -> None:
    """Raise UserError for tables without a video: misnamed tables would silently give episodes without actions."""
    stray = files_below(root, SUFFIXES)
    if stray:
        raise UserError(
            f"{stray[0]}: no table has the name of a video; expected {video.with_suffix('.csv').name} beside "
            f"{video}; rename the tables, or move them away to convert without actions"
        )


def dimension(tables: Iterable[Path], columns: Sequence[str]) -> int | None:
    """Return the action dimension of the first readable table and print how it was read; all others have to match."""
    problem: UserError | OSError | None = None
    for table in tables:
        try:
            read = read_actions(table, columns)
            print(how_read(table, read), file=sys.stderr)
            return read.actions.shape[1]
        except (UserError, OSError) as error:
            problem = problem or error
    if problem is not None:
        raise problem
    return None


def how_read(path: Path, table: ActionTable) -> str:
    """Describe in one line which columns become the action."""
    dim = table.actions.shape[1]
    header = f"first line read as names: {table.header}" if table.header else "no header"
    left_out = f"; left out: {', '.join(table.left_out)}" if table.left_out else ""
    return f"{path.name}: actions of {dim} dimension{'s' * (dim > 1)}, {header}{left_out}"


def convert_video(args: VideosArgs, job: VideoJob) -> dict[str, np.ndarray]:
    actions = read_actions(job.actions, args.columns).actions if job.actions else None
    if actions is not None and actions.shape[1] != job.action_dim:
        raise UserError(f"{job.actions}: {actions.shape[1]} columns of actions; the first table has {job.action_dim}")
    first = max(-args.action_offset, 0) if actions is not None else 0
    clip = decode(VideoFile(job.video), FrameChoice(args.fps, args.step), first, args.store)
    if actions is None:
        return {"image": clip.frames}
    action_rows = ActionRows.find(clip.num_recorded, len(actions), args.action_offset)
    kept = clip.indices <= action_rows.last + 1
    chosen = actions_at(clip.indices[kept], actions, action_rows, args.skipped_actions)
    return {"image": clip.frames[kept], "action": chosen}


@dataclass(frozen=True)
class Clip:
    frames: np.ndarray  # (n, H, W, 3) uint8
    indices: np.ndarray  # (n,) of the frames as recorded, rising
    num_recorded: int


def decode(video: VideoFile, choice: FrameChoice, first: int, store: StoredSize) -> Clip:
    """Decode the chosen frames from ``first`` on. Each is resized at once, as a long video does not fit into memory."""
    choice.check(video)
    recorded = Numbered(video.frames())
    frames: list[np.ndarray] = []
    indices: list[int] = []
    for i, frame in choice.choose(recorded, first):
        with readable_video(video.path):
            frames.append(store(rgb(frame)[None]))
        indices.append(i)
        if frames[-1].shape != frames[0].shape:
            raise UserError(f"{video.path}: frame {i} has another size than the first; use --resize")
        if len(frames) * frames[0].nbytes > MAX_EPISODE_BYTES:
            raise UserError(
                f"{video.path}: takes more than {MAX_EPISODE_BYTES >> 30} GB as frames; "
                "use --resize, --fps or --step, or cut it into shorter videos"
            )
    if not frames:
        raise UserError(f"{video.path}: has {recorded.count} frames, none from frame {first} on")
    return Clip(np.concatenate(frames), np.array(indices), recorded.count)


class Numbered:
    """Iterate over numbers, times and frames, and count the frames."""

    def __init__(self, frames: Iterable[tuple[float | None, Any]]) -> None:
        self._frames = frames
        self.count = 0

    def __iter__(self) -> Iterator[tuple[int, float | None, Any]]:
        for seconds, frame in self._frames:
            self.count += 1
            yield self.count - 1, seconds, frame


@dataclass(frozen=True)
class FrameChoice:
    """Rule that selects the frames to keep."""

    fps: float | None
    step: int

    def check(self, video: VideoFile) -> None:
        if self.fps is not None and video.rate is not None and self.fps > 1.01 * video.rate:
            raise UserError(
                f"{video.path}: has {video.rate:g} frames per second, --fps asks for {self.fps:g}; lower it"
            )

    def choose(self, frames: Numbered, first: int) -> Iterator[tuple[int, Any]]:
        """Yield the numbers and frames to keep, from number ``first`` on."""
        if self.fps is not None:
            return self._in_time(self._timed(frame for frame in frames if frame[0] >= first))
        return ((i, frame) for i, _, frame in frames if i >= first and (i - first) % self.step == 0)

    def _timed(self, frames: Iterable[tuple[int, float | None, Any]]) -> Iterator[tuple[int, float, Any]]:
        """Yield the frames. Raises UserError unless their times increase."""
        before = -math.inf
        for i, seconds, frame in frames:
            if seconds is None or seconds <= before:
                shown = "at no time" if seconds is None else f"at {seconds:.3f} s, not after the one before"
                raise UserError(f"frame {i} is shown {shown}, so --fps cannot choose; use --step instead")
            yield i, seconds, frame
            before = seconds

    def _in_time(self, frames: Iterable[tuple[int, float, Any]]) -> Iterator[tuple[int, Any]]:
        """Yield the frames closest to the times k / fps after the first."""
        assert self.fps is not None
        before: tuple[int, float, Any] | None = None
        start, num_kept = 0.0, 0
        for now in frames:
            if before is None:
                start, before = now[1], now
            while (wanted := start + num_kept / self.fps) <= now[1]:
                i, _, frame = now if now[1] - wanted < wanted - before[1] else before
                yield i, frame
                num_kept += 1
            before = now


def actions_at(indices: np.ndarray, actions: Actions, action_rows: ActionRows, skipped: str) -> Actions:
    """Return the actions (n, D) at these frames, or (n - 1, D) where the last frame has none.

    If actions of dropped frames are summed or averaged, the last frame has none: its successors are unknown.
    """
    rows = indices + action_rows.offset
    if skipped == "drop":
        return actions[rows[indices <= action_rows.last]]
    combined = [actions[start:stop].sum(axis=0) for start, stop in itertools.pairwise(rows)]
    sums: Actions = np.reshape(combined, (-1, actions.shape[1])).astype(np.float32)
    if skipped == "mean":
        sums /= np.maximum(np.diff(rows), 1)[:, None]
    return sums


def run(args: VideosArgs) -> Summary:
    require("av")
    jobs = find_jobs(args)
    settings = {name: getattr(args, name) for name in NOTED} | {"input_path": str(Path(args.input_path).resolve())}
    keep_settings(Path(args.output_path) / args.dataset, settings)
    return args.convert([jobs], partial(convert_video, args), args.dataset)


def main() -> None:
    args = parse(VideosArgs)
    print(run(args))
    print(args.how_to_train)


if __name__ == "__main__":
    cli(main)
