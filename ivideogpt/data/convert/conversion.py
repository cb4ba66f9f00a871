"""Shared parts of the converters: jobs in, npz episodes out. Knows only the format that is written.

Episodes are written under a temporary name and renamed. So files with a final name are complete, and the same command
continues an interrupted conversion. Those that are older than a source are made again.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from ivideogpt.data.convert.workers import worker_pool
from ivideogpt.data.plausible import check_plausible
from ivideogpt.errors import UserError
from ivideogpt.files import atomic_file, check_settings, remove_abandoned, write_json
from ivideogpt.flags import REQUIRED, option

BAD_EPISODES = ("error", "skip")

_LISTED_SKIPS = 20  # limit in the summary; each is also logged when it happens
_BYTES_AT_ONCE = 16 << 20  # limit for frames that are resized together: floats take four times as much
NOTE = "conversion.json"  # settings of a folder's conversion, which all its episodes share
TEXTS = "language_instruction"  # array of the text of each frame's task, called as in RLDS

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """One episode to write. Jobs are pickled to worker processes."""

    output: Path
    source: str  # name in messages: a path, or path#episode
    place: Any = None  # where its converter finds it, if the source does not say
    files: tuple[str | Path, ...] = ()  # local files that it is made of: an output older than one of them is outdated

    @property
    def is_outdated(self) -> bool:
        """Tell whether the output, which exists, is older than one of its files."""
        made = self.output.stat().st_mtime_ns
        return any(os.stat(file).st_mtime_ns > made for file in self.files if os.path.exists(file))


@dataclass(frozen=True)
class Skipped:
    """A skipped episode and the reason. In a list of jobs: one that is indexed but cannot be found."""

    source: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.reason.startswith(self.source) else f"{self.source}: {self.reason}"


class Jobs(Protocol):
    """The episodes of a split. They may be looked up lazily, during iteration."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Job | Skipped]: ...


@dataclass(frozen=True)
class Shard:
    """A part of the jobs, for one machine of several: numbers ``index``, ``index + count``, ... of the listing."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """Read ``index/count``; None is everything."""
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise UserError(f"--shard {text}: expected i/n with i from 0 to n - 1, such as 0/8 to 7/8")
        return cls(int(match[1]), int(match[2]))

    def has(self, number: int) -> bool:
        return number % self.count == self.index

    def __str__(self) -> str:
        return f"shard {self.index}/{self.count}"


@dataclass
class Summary:
    """Counts of the outcomes so far, which the progress bar shows too."""

    bar: Any
    on_bad_episode: str
    shard: Shard = Shard()
    written: int = 0
    existing: int = 0
    outdated: int = 0  # were there before, but a source has changed since
    skipped: tuple[Skipped, ...] = ()
    remarks: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        shard = f"{self.shard}: " if self.shard.count > 1 else ""
        counts = f"{self.written} episodes written, {self.existing} were there before, {len(self.skipped)} skipped"
        again = f"; {self.outdated} were there, but older than a source" if self.outdated else ""
        lines = [shard + counts + again]
        lines += [f"  skipped: {' '.join(str(skip).split())}" for skip in self.skipped[:_LISTED_SKIPS]]
        if len(self.skipped) > _LISTED_SKIPS:
            lines.append(f"  and {len(self.skipped) - _LISTED_SKIPS} more, named above")
        return "\n".join(lines)

    def missing(self, jobs: Iterable[Job | Skipped]) -> Iterator[Job]:
        """Yield the shard's jobs whose output is missing or outdated, and count its others."""
        seen: set[Path] = set()  # outputs and their folders, of all shards
        for number, job in enumerate(jobs):
            if isinstance(job, Job) and job.output in seen:
                job = Skipped(job.source, f"another episode is already called {job.output}")
            if isinstance(job, Job):
                if job.output.parent not in seen:
                    remove_abandoned(job.output.parent)
                seen |= {job.output, job.output.parent}
            if not self.shard.has(number):
                continue
            if isinstance(job, Skipped):
                self.add(job)
            elif not job.output.exists():
                yield job
            elif job.is_outdated:
                self.outdated += 1
                job.output.unlink(missing_ok=True)  # or it would stay if the source cannot be read any more
                yield job
            else:
                self.existing += 1
                self.bar.update()

    def check(self) -> None:
        """Raise UserError if there were only bad episodes."""
        if self.skipped and not self.written + self.existing:
            number, first = len(self.skipped), self.skipped[0]
            raise UserError(f"none of {number} episodes could be converted; the first: {first}")

    def add(self, outcome: Skipped | str | None) -> None:
        """Count an outcome; None stands for a written episode, and a text for one with this remark."""
        self.bar.update()
        if not isinstance(outcome, Skipped):
            self.written += 1
            if outcome is not None and outcome not in self.remarks:
                self.remarks.add(outcome)
                self.bar.write(outcome, file=sys.stderr)
        elif self.on_bad_episode == "error":
            raise UserError(f"{outcome}; repair it, or leave such episodes out with --on_bad_episode skip")
        else:
            self.skipped += (outcome,)
            self.bar.write(f"skipped: {outcome}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class ConversionArgs:
    """Flags of all converters; each adds its own in a subclass."""

    max_num_episodes: int | None = option(None, "convert only the first N episodes of each split or folder", minimum=1)
    num_workers: int = option(os.cpu_count() or 1, "processes", minimum=1)
    on_bad_episode: str = option("skip", "treatment of episodes that are damaged or do not fit", choices=BAD_EPISODES)
    compress: bool = option(False, "smaller files, but slower to read clips from")
    shard: str | None = option(
        None, "convert part i of n, i/n with i from 0 on: one of n commands that together convert everything"
    )

    def __post_init__(self) -> None:
        Shard.parse(self.shard)  # or say what is wrong with it

    def validate(self) -> None:
        """Check the flags of the subclass for contradictions."""

    def convert(self, splits: Sequence[Jobs], convert_one: Callable[[Job], Arrays], description: str) -> Summary:
        """Write the episode of every job of the shard whose file is missing or outdated, split after split.

        Args:
            convert_one: reads one episode. Defined at module level, as other processes import it. Its UserError or
                OSError marks a bad episode, which ends the run or is skipped and counted.

        Raises:
            UserError: a bad episode with ``on_bad_episode="error"``, only bad episodes, or an unwritable output.
        """
        return self.run(splits, partial(_work, convert_one, self.compress), description)

    def run(self, splits: Sequence[Jobs], work: Callable[[Job], Skipped | str | None], description: str) -> Summary:
        """Run jobs like :meth:`convert`, but ``work`` writes the output itself, or returns why it is skipped.

        A text that it returns is a remark on a written episode, and is shown once.
        """
        jobs = self._first_of_each(splits)
        total = sum(min(len(jobs), self.max_num_episodes or len(jobs)) for jobs in splits)
        shard = Shard.parse(self.shard)
        progress = tqdm(total=len(range(shard.index, total, shard.count)), desc=description, unit="episode")
        with progress, worker_pool(self.num_workers) as run:
            summary = Summary(progress, self.on_bad_episode, shard)
            for outcome in run(work, summary.missing(jobs)):
                summary.add(outcome)
        summary.check()
        return summary

    def own_jobs(self, splits: Sequence[Jobs]) -> list[Job | Skipped]:
        """Return the jobs of the shard, with those that are done."""
        shard = Shard.parse(self.shard)
        return [job for number, job in enumerate(self._first_of_each(splits)) if shard.has(number)]

    def _first_of_each(self, splits: Sequence[Jobs]) -> Iterator[Job | Skipped]:
        return itertools.chain.from_iterable(itertools.islice(jobs, self.max_num_episodes) for jobs in splits)


@dataclass(frozen=True)
class StoredSize:
    """Preprocess frames (N, H, W, 3) uint8 to (N, S, S, 3) as training does, rounded to 8 bits, if a size is set."""

    size: int | None = None
    square_crop: bool = False  # central, before resizing

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        if self.square_crop:
            # here, as it imports torch: seconds in every worker process
            from ivideogpt.data.clips.transforms import central_square

            frames = central_square(*frames.shape[1:3])(frames)
        if self.size is None or frames.shape[1:3] == (self.size, self.size):
            return frames
        from ivideogpt.data.clips.transforms import resize

        at_once = max(_BYTES_AT_ONCE // frames[0].nbytes, 1)
        starts = range(0, len(frames), at_once)
        parts = [resize(frames[start : start + at_once], self.size).round().byte().numpy() for start in starts]
        return np.ascontiguousarray(np.concatenate(parts).transpose(0, 2, 3, 1))


@dataclass(frozen=True, kw_only=True)
class FrameArgs(ConversionArgs):
    """Flags of converters that can resize frames."""

    input_path: str  # a flag that the subclass declares with its help
    resize: int | None = option(
        None, "store frames of this width and height, best the training resolution (default: their own)", minimum=1
    )
    square_crop: bool = option(False, "cut to the central square first, as training does for tfds_robonet")

    @property
    def store(self) -> StoredSize:
        return StoredSize(self.resize, self.square_crop)

    def noted(self, *names: str) -> dict[str, Any]:
        """Return these flags, those of the size, and the path of the input: the settings of a conversion."""
        settings = {name: getattr(self, name) for name in (*names, "resize", "square_crop")}
        return settings | {"input_path": str(Path(self.input_path).resolve())}


@dataclass(frozen=True, kw_only=True)
class NpzDatasetArgs(FrameArgs):
    """Flags of converters that make one dataset from one folder."""

    output_path: str = option(REQUIRED, "parent of the output folder <dataset_name>")
    dataset_name: str | None = option(None, "name of the dataset (default: that of the input folder)")

    @property
    def dataset(self) -> str:
        return self.dataset_name or Path(self.input_path).resolve().name

    @property
    def how_to_train(self) -> str:
        return f"train with --dataset_path {self.output_path} --oxe_data_mixes_type folder:{self.dataset}"


def write_episode(path: Path, arrays: Arrays, compress: bool = False) -> None:
    """Write an npz file atomically. Uncompressed files allow reading clips through a memory map."""
    write: Callable[..., None] = np.savez_compressed if compress else np.savez
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        write(file, **arrays)


def check_arrays(arrays: Arrays) -> None:
    """Raise UserError unless these arrays form an episode that the loaders accept."""
    objects = [key for key, array in arrays.items() if array.dtype.hasobject]
    if objects:
        raise UserError(f"array {objects[0]!r} holds Python objects; expected numbers")
    cameras = {key: array for key, array in arrays.items() if array.ndim == 4}
    for key, frames in cameras.items():
        if frames.dtype != np.uint8 or frames.shape[3] != 3 or min(frames.shape) < 1:
            raise UserError(f"{key!r} is {frames.dtype} of shape {frames.shape}; expected uint8 frames (N, H, W, 3)")
    lengths = {len(frames) for frames in cameras.values()}
    if len(lengths) != 1:
        raise UserError(f"expected cameras with equally many frames, found {sorted(lengths) or 'no camera'}")
    if (action := arrays.get("action")) is not None:
        num_frames = lengths.pop()
        if action.ndim != 2 or len(action) not in (num_frames, num_frames - 1):
            raise UserError(f"actions of shape {action.shape} for {num_frames} frames; expected a row a frame")
        check_plausible(action, "array 'action'")


def _work(convert_one: Callable[[Job], Arrays], compress: bool, job: Job) -> Skipped | None:
    """Convert one job in a worker process. A failure to write is not the episode's fault and ends the run."""
    try:
        arrays = convert_one(job)
        check_arrays(arrays)
    except (UserError, OSError) as error:
        return Skipped(job.source, str(error))
    write_episode(job.output, arrays, compress)
    return None


def keep_settings(folder: Path, settings: Mapping[str, Any], note: str = NOTE) -> None:
    """Make the folder and store the settings there.

    Raises:
        UserError: its episodes were made with other settings. Continuing would mix sizes, rates or cameras unnoticed.
    """
    advice = "delete it to go on with the settings given now, or use another folder"
    now = check_settings(folder / note, settings, advice)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / note, now)
