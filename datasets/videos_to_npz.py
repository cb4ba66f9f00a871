"""Convert a folder of videos, each with a table of actions beside it, to npz episodes.

    python datasets/videos_to_npz.py --input_path recordings --output_path data --dataset_name my_robot --resize 64

reads ``recordings/**/<name>.{mp4,mov,mkv,avi,webm}`` with ``<name>.csv`` or ``<name>.npy`` and writes
``data/my_robot/<name>.npz``, which trains with ``--dataset_path data --oxe_data_mixes_type folder:my_robot``. Row i of
the actions is the action at frame i, which leads to frame i + 1; the last row may be missing. Columns with names are
stored in the order of the first table, whatever their order in another. Without any tables the episodes have no
actions. Run the same command again to go on after an interruption, or after correcting tables: episodes that are older
than their video or table are written again.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.catalog import files_below, say_pace
from ivideogpt.data.convert.action_files import (
    SUFFIXES,
    Actions,
    ActionTable,
    last_with_action,
    read_actions,
)
from ivideogpt.data.convert.conversion import (
    Job,
    NpzDatasetArgs,
    Skipped,
    StoredSize,
    Summary,
    keep_settings,
)
from ivideogpt.data.formats.episodes import first_readable
from ivideogpt.data.formats.video_files import SUFFIXES as VIDEOS
from ivideogpt.data.formats.video_files import VideoFile, readable_video, rgb
from ivideogpt.errors import UserError, cli, require
from ivideogpt.flags import REQUIRED, option, parse

NOTED = ("action_columns", "action_offset", "fps", "step", "skipped_actions")
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
        if self.skipped_actions != "drop" and self.fps is None and self.step == 1:
            raise UserError(f"--skipped_actions {self.skipped_actions} needs --fps or --step: no frame is left out")

    @property
    def columns(self) -> list[str]:
        return [name.strip() for name in (self.action_columns or "").split(",") if name.strip()]


def find_jobs(args: VideosArgs) -> tuple[list[Job | Skipped], tuple[str, ...]]:
    """List one job per video, by name, and the names of the actions' columns, which all videos have or none."""
    root = Path(args.input_path)
    videos, stray = files_below(root, VIDEOS), files_below(root, SUFFIXES)
    if not videos:
        raise UserError(f"--input_path {root}: no videos there; expected files ending in {', '.join(sorted(VIDEOS))}")
    beside = {video: [video.with_suffix(suffix) for suffix in SUFFIXES] for video in videos}
    tables = {video: [path for path in paths if path.is_file()] for video, paths in beside.items()}
    with_actions = any(tables.values())
    if stray and not with_actions:  # misnamed tables would silently give episodes without actions
        raise UserError(
            f"{stray[0]}: no table has the name of a video; expected {videos[0].with_suffix('.csv').name} beside "
            f"{videos[0]}; rename the tables, or move them away to convert without actions"
        )
    names: tuple[str, ...] = ()
    if single := [found[0] for found in tables.values() if len(found) == 1]:
        # all others have to match the first readable one
        path, table = first_readable(lambda path: (path, read_actions(path, args.columns)), single)
        print(how_read(path, table), file=sys.stderr)
        names = table.names
    jobs: list[Job | Skipped] = []
    for video, found in tables.items():
        if len(found) > 1:
            reason = f"{found[0]} and {found[1].name}: two files of actions for one video; remove one of them"
            jobs.append(Skipped(str(video), reason))
        elif with_actions and not found:
            expected = " or ".join(video.with_suffix(suffix).name for suffix in SUFFIXES)
            jobs.append(Skipped(str(video), f"no actions; expected {expected} beside it, as other videos have"))
        else:
            stem = "_".join(video.relative_to(root).with_suffix("").parts)
            output = Path(args.output_path) / args.dataset / f"{stem}.npz"
            jobs.append(Job(output, str(video), next(iter(found), None), (video, *found)))
    return jobs, names


def how_read(path: Path, table: ActionTable) -> str:
    """Describe in one line which columns become the action."""
    dim = table.actions.shape[1]
    header = f"first line read as names: {table.header}" if table.header else "no header"
    left_out = f"; left out: {', '.join(table.left_out)}" if table.left_out else ""
    return f"{path.name}: actions of {dim} dimension{'s' * (dim > 1)}, {header}{left_out}"


def convert_video(args: VideosArgs, names: tuple[str, ...], job: Job) -> dict[str, np.ndarray]:
    actions = read_actions(job.place, args.columns).ordered(names) if job.place else None
    first = max(-args.action_offset, 0) if actions is not None else 0
    clip = decode(VideoFile(job.source), first, args.store, args.fps, args.step)
    if actions is None:
        return {"image": clip.frames}
    last = last_with_action(clip.num_recorded, len(actions), args.action_offset)
    kept = clip.indices <= last + 1
    rows = clip.indices[kept] + args.action_offset
    return {"image": clip.frames[kept], "action": chosen_actions(actions, rows, last + args.action_offset, args)}


NumberedFrame = tuple[int, float | None, Any]  # number, seconds, PyAV frame


@dataclass(frozen=True)
class Clip:
    frames: np.ndarray  # (n, H, W, 3) uint8
    indices: np.ndarray  # (n,) of the frames as recorded, rising
    num_recorded: int


def decode(video: VideoFile, first: int, store: StoredSize, fps: float | None = None, step: int = 1) -> Clip:
    """Decode frames from ``first`` on: ``fps`` a second, or every ``step``-th.

    Each is resized at once, as a long video does not fit into memory.
    """
    if fps is not None and video.rate is not None and fps > 1.01 * video.rate:
        raise UserError(f"{video.path}: has {video.rate:g} frames per second, --fps asks for {fps:g}; lower it")
    num_recorded = 0

    def recorded() -> Iterator[NumberedFrame]:
        nonlocal num_recorded
        for seconds, frame in video.frames():
            num_recorded += 1
            if num_recorded > first:
                yield num_recorded - 1, seconds, frame

    frames: list[np.ndarray] = []
    indices: list[int] = []
    every = ((i, frame) for i, _, frame in itertools.islice(recorded(), 0, None, step))
    for i, frame in every if fps is None else frames_in_time(recorded(), fps):
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
        raise UserError(f"{video.path}: has {num_recorded} frames, none from frame {first} on")
    return Clip(np.concatenate(frames), np.array(indices), num_recorded)


def frames_in_time(frames: Iterable[NumberedFrame], fps: float) -> Iterator[tuple[int, Any]]:
    """Yield the frames closest to the times k / fps after the first. Raises UserError unless their times increase."""
    before: tuple[int, float, Any] = (-1, -math.inf, None)
    start, num_kept = -math.inf, 0
    for i, seconds, frame in frames:
        if seconds is None or seconds <= before[1]:
            shown = "at no time" if seconds is None else f"at {seconds:.3f} s, not after the one before"
            raise UserError(f"frame {i} is shown {shown}, so --fps cannot choose; use --step instead")
        start = max(start, seconds) if num_kept == 0 else start
        while (wanted := start + num_kept / fps) <= seconds:
            is_closer = seconds - wanted < wanted - before[1]
            yield (i, frame) if is_closer else (before[0], before[2])
            num_kept += 1
        before = i, seconds, frame


def chosen_actions(actions: Actions, rows: np.ndarray, last_row: int, args: VideosArgs) -> Actions:
    """Return the actions (n, D) in the rows of the frames kept, or (n - 1, D) where the last frame has none.

    If actions of dropped frames are summed or averaged, the last frame has none: its successors are unknown.
    """
    if args.skipped_actions == "drop":
        return actions[rows[rows <= last_row]]
    combined = [actions[start:stop].sum(axis=0) for start, stop in itertools.pairwise(rows)]
    sums: Actions = np.reshape(combined, (-1, actions.shape[1])).astype(np.float32)
    if args.skipped_actions == "mean":
        sums /= np.maximum(np.diff(rows), 1)[:, None]
    return sums


def run(args: VideosArgs) -> Summary:
    require("av")
    jobs, names = find_jobs(args)
    keep_settings(Path(args.output_path) / args.dataset, args.noted(*NOTED) | {"action_names": names or None})
    return args.convert([jobs], partial(convert_video, args, names), args.dataset)


def main() -> None:
    args = parse(VideosArgs)
    print(run(args), args.how_to_train, *say_pace(args.dataset), sep="\n")


if __name__ == "__main__":
    cli(main)
