"""What every converter shares: jobs in, npz episodes out. Knows no file format but the one written.

Episodes are written aside and renamed, so whatever has its final name is whole, and an interrupted conversion goes on
with the same command.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from ivideogpt.data.convert.stored_size import StoredSize
from ivideogpt.data.plausible import check_plausible
from ivideogpt.errors import UserError
from ivideogpt.files import atomic_file, remove_abandoned
from ivideogpt.flags import REQUIRED, option

BAD_EPISODES = ("error", "skip")

_LISTED_SKIPS = 20  # in a summary; each is also reported when it happens
_JOBS_AHEAD = 4  # per worker

Arrays = Mapping[str, np.ndarray]
AnyJob = TypeVar("AnyJob", bound="Job")
AnyJob_co = TypeVar("AnyJob_co", bound="Job", covariant=True)


@dataclass(frozen=True)
class Job:
    """One episode to write. Converters add what they need to find it; it travels to a worker process."""

    output: Path
    source: str  # for messages: a path, or path#episode


@dataclass(frozen=True)
class Skipped:
    """An episode that is left out. Among the jobs: one that the input's index promises and that cannot be found."""

    source: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.reason.startswith(self.source) else f"{self.source}: {self.reason}"


class Jobs(Protocol[AnyJob_co]):
    """The episodes of a split. They may be looked up as late as they are iterated over."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[AnyJob_co | Skipped]: ...


@dataclass(frozen=True)
class Summary:
    written: int
    existing: int
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        lines = [f"{self.written} episodes written, {self.existing} were there before, {len(self.skipped)} skipped"]
        lines += [f"  skipped: {' '.join(str(skip).split())}" for skip in self.skipped[:_LISTED_SKIPS]]
        if len(self.skipped) > _LISTED_SKIPS:
            lines.append(f"  and {len(self.skipped) - _LISTED_SKIPS} more, named above")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ConversionArgs:
    """The flags that all converters have; theirs are added in a subclass."""

    max_num_episodes: int | None = option(None, "convert only the first so many episodes of each split", minimum=1)
    num_workers: int = option(os.cpu_count() or 1, "processes", minimum=1)
    on_bad_episode: str = option("skip", "what a damaged or unfitting episode does", choices=BAD_EPISODES)
    compress: bool = option(False, "smaller files, but slow to read clips from")

    def validate(self) -> None:
        """Flags of the subclass that do not fit together."""

    def convert(
        self, splits: Iterable[Jobs[AnyJob]], convert_one: Callable[[AnyJob], Arrays], description: str
    ) -> Summary:
        """:func:`convert` with these flags, split after split."""
        splits = list(splits)
        return convert(
            itertools.chain.from_iterable(itertools.islice(jobs, self.max_num_episodes) for jobs in splits),
            convert_one,
            workers=self.num_workers,
            description=description,
            on_bad_episode=self.on_bad_episode,
            compress=self.compress,
            total=sum(
                len(jobs) if self.max_num_episodes is None else min(len(jobs), self.max_num_episodes) for jobs in splits
            ),
        )


@dataclass(frozen=True, kw_only=True)
class FrameArgs(ConversionArgs):
    """The flags of converters that can change the size of frames."""

    resize: int | None = option(
        None, "store frames of this width and height, best the training resolution (default: their own)", minimum=1
    )
    square_crop: bool = option(False, "cut to the central square first, as training does for tfds_robonet")

    @property
    def store(self) -> StoredSize:
        return StoredSize(self.resize, self.square_crop)


@dataclass(frozen=True, kw_only=True)
class NpzDatasetArgs(FrameArgs):
    """The flags of converters that make one dataset from one folder."""

    input_path: str  # a flag of the subclass, which says what is in it
    output_path: str = option(REQUIRED, "folder that gets the folder <dataset_name>")
    dataset_name: str | None = option(None, "name of the dataset (default: that of the input folder)")

    @property
    def dataset(self) -> str:
        return self.dataset_name or Path(self.input_path).resolve().name

    @property
    def how_to_train(self) -> str:
        return f"train with --dataset_path {self.output_path} --oxe_data_mixes_type folder:{self.dataset}"


def convert(
    jobs: Iterable[AnyJob | Skipped],
    convert_one: Callable[[AnyJob], Arrays],
    *,
    workers: int = 1,
    max_num_episodes: int | None = None,
    description: str = "episodes",
    on_bad_episode: str = "skip",
    compress: bool = False,
    total: int | None = None,
) -> Summary:
    """Write the episode of every job that has no file yet.

    Args:
        convert_one: reads one episode; at module level, as other processes import it. A UserError or OSError from it
            is a bad episode: it ends the run, or is counted and left out.
        max_num_episodes: only the first so many jobs count, those with a file included.
        total: number of jobs, for the progress bar, if ``jobs`` has no length.

    Raises:
        UserError: a bad episode with ``on_bad_episode="error"``, nothing but bad episodes, or no place to write to.
    """
    return run_jobs(
        jobs,
        partial(_work, convert_one, compress),
        workers=workers,
        max_num_episodes=max_num_episodes,
        description=description,
        on_bad_episode=on_bad_episode,
        total=total,
    )


def run_jobs(
    jobs: Iterable[AnyJob | Skipped],
    work: Callable[[AnyJob], Skipped | None],
    *,
    workers: int = 1,
    max_num_episodes: int | None = None,
    description: str = "episodes",
    on_bad_episode: str = "skip",
    total: int | None = None,
) -> Summary:
    """:func:`convert` for outputs of another kind: ``work`` writes the output itself, or says why there is none."""
    if total is None and isinstance(jobs, Sized):
        total = len(jobs)
    if max_num_episodes is not None:
        total = max_num_episodes if total is None else min(total, max_num_episodes)
    with tqdm(total=total, desc=description, unit="episode") as progress, terminable(), _pool(workers) as run:
        tally = _Tally(progress, on_bad_episode)
        for outcome in run(work, tally.missing(itertools.islice(jobs, max_num_episodes))):
            tally.add(outcome)
    return tally.summary()


def write_episode(path: Path, arrays: Arrays, compress: bool = False) -> None:
    """Write an npz file whole or not at all. Uncompressed, a clip of it can be read through a memory map."""
    write: Callable[..., None] = np.savez_compressed if compress else np.savez
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            write(file, **arrays)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another"
        ) from error


def check_arrays(arrays: Arrays) -> None:
    """Raises UserError unless these arrays make an episode that the loaders accept."""
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
    if "action" in arrays:
        _check_actions(arrays["action"], lengths.pop())


def _check_actions(action: np.ndarray, num_frames: int) -> None:
    if action.ndim != 2 or len(action) not in (num_frames, num_frames - 1):
        raise UserError(
            f"actions of shape {action.shape} for {num_frames} frames; expected a row a frame, the last optional"
        )
    check_plausible(action, "array 'action'")


class _Tally:
    """What became of the jobs so far."""

    def __init__(self, progress: Any, on_bad_episode: str) -> None:
        self._progress = progress
        self._on_bad_episode = on_bad_episode
        self._outputs: set[str] = set()
        self._folders: set[Path] = set()
        self._written = self._existing = 0
        self._skipped: list[Skipped] = []

    def missing(self, jobs: Iterable[AnyJob | Skipped]) -> Iterator[AnyJob]:
        """The jobs still to do; the others are counted."""
        for job in jobs:
            if isinstance(job, Skipped):
                self.add(job)
            elif str(job.output) in self._outputs:
                self.add(Skipped(job.source, f"another episode is already called {job.output}"))
            else:
                self._outputs.add(str(job.output))
                if job.output.parent not in self._folders:
                    self._folders.add(job.output.parent)
                    remove_abandoned(job.output.parent)
                if not job.output.exists():
                    yield job
                    continue
                self._existing += 1
                self._progress.update()

    def add(self, outcome: Skipped | None) -> None:
        """None: an episode was written."""
        self._progress.update()
        if outcome is None:
            self._written += 1
            return
        if self._on_bad_episode == "error":
            raise UserError(f"{outcome}; repair it, or leave such episodes out with --on_bad_episode skip")
        self._skipped.append(outcome)
        self._progress.write(f"skipped: {outcome}", file=sys.stderr)

    def summary(self) -> Summary:
        if self._skipped and not self._written + self._existing:
            raise UserError(f"none of {len(self._skipped)} episodes could be converted; the first: {self._skipped[0]}")
        return Summary(self._written, self._existing, tuple(self._skipped))


def _work(convert_one: Callable[[AnyJob], Arrays], compress: bool, job: AnyJob) -> Skipped | None:
    """In a worker process. A failure to write is no fault of the episode and ends the run."""
    try:
        arrays = convert_one(job)
        check_arrays(arrays)
    except (UserError, OSError) as error:
        return Skipped(job.source, str(error))
    write_episode(job.output, arrays, compress)
    return None


Outcomes = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


def _pool(workers: int) -> AbstractContextManager[Outcomes]:
    """A ``map`` that works in this process or in several and draws jobs only when they are about to be done."""
    return nullcontext(map) if workers == 1 else worker_pool(workers)


@contextmanager
def worker_pool(workers: int, start: Callable[..., None] | None = None, *arguments: Any) -> Iterator[Outcomes]:
    """Yield a ``map`` that works in several processes. Leaving the block waits for what they are at.

    Args:
        start: called first in each process, with the arguments; it calls :func:`start_worker`.

    Raises:
        UserError: a process died.
    """
    context = multiprocessing.get_context("spawn")  # video, HDF5 and OpenGL libraries do not survive a fork
    pool = ProcessPoolExecutor(workers, context, start or start_worker, arguments)

    def run(work: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        """Unlike ``pool.map`` never cancel a job: when a worker has died, Python 3.11 waits for ever after that."""
        pending: deque[Future[Any]] = deque()
        for job in jobs:
            pending.append(pool.submit(work, job))
            if len(pending) == _JOBS_AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    try:
        yield run
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for its memory; run again to go on, with fewer --num_workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """What a worker process does first: it leaves Ctrl-C to its parent, and ends with it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch, as there is a process a core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent says nothing to its workers: they would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM unwinds the stack like Ctrl-C, so that files being written are removed and workers end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
