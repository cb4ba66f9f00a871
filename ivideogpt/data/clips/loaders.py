"""Streams of clip batches. Knows batches, workers, ranks and positions; dataset.py knows the clips.

Sample k of a stream depends on the seed and k alone. So the position of a stream is one number, it resumes exactly,
and workers and ranks share a stream by taking different k.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader

from ivideogpt.data.catalog import OWN_SPLITS, Split
from ivideogpt.data.clips.batches import PackedClips
from ivideogpt.data.clips.dataset import ClipDataset, DataConfig, PickByWeight, PickInOrder, build_sources
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.dataset_mixes import DATASET_NAMED_MIXES
from ivideogpt.errors import UserError, first_line

logger = logging.getLogger(__name__)


@dataclass
class BatchNumbers:
    """Sample numbers of this rank's batches, from batch ``start`` on. Ranks take whole batches in turn."""

    batch_size: int
    rank: int = 0
    world_size: int = 1
    start: int = 0
    stop: int | None = None  # a batch number
    num_samples: int | None = None  # the stream's length: its last batch may be smaller

    @property
    def num_batches(self) -> int | None:
        """Return the number of batches per rank. Several ranks get only whole batches, so that none has to wait."""
        if self.num_samples is None:
            return None
        if self.world_size == 1:
            return -(-self.num_samples // self.batch_size)
        return self.num_samples // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in count(self.start) if self.stop is None else range(self.start, self.stop):
            first = (batch * self.world_size + self.rank) * self.batch_size
            last = first + self.batch_size
            yield list(range(first, last if self.num_samples is None else min(last, self.num_samples)))


class StreamPosition:
    """Base of streams whose ranks take whole batches in turn; ``position`` counts the batches used by each rank."""

    def __init__(self, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.position = 0

    @property
    def samples_per_step(self) -> int:
        return self.batch_size * self.world_size

    def state_dict(self) -> dict[str, int]:
        return {"samples": self.position * self.samples_per_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the samples already used: exactly, if batch size and number of ranks are unchanged."""
        self.position = -(-state["samples"] // self.samples_per_step)


class ClipLoader(StreamPosition):
    """An endless stream of :class:`PackedClips`, to be finished by ``batch.to(device)``.

    Iteration continues where the last iteration or the loaded state stopped.
    """

    def __init__(self, clips: ClipDataset, numbers: BatchNumbers) -> None:
        super().__init__(numbers.batch_size, numbers.rank, numbers.world_size)
        self.clips, self._numbers = clips, numbers
        self.bad_episodes: dict[str, str] = {}  # skipped in the batches used so far -> cause
        self._batches: DataLoader[Any] = DataLoader(
            clips,
            batch_sampler=numbers,
            num_workers=clips.config.num_workers,
            collate_fn=_as_it_is,
            multiprocessing_context=start_method(clips.config.num_workers),
            persistent_workers=clips.config.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_obey_the_trainer_only,
            generator=torch.Generator(),  # an iteration samples a base seed: keep it off the trainer's generator
        )

    @property
    def num_batches(self) -> int | None:
        """Return the number of batches; None for an endless stream."""
        return self._numbers.num_batches

    def __iter__(self) -> Iterator[PackedClips]:
        for batch in self._between(self.position, None):
            self.position += 1
            yield batch

    def first(self, num_batches: int) -> Iterator[PackedClips]:
        """Yield the first batches of the stream, the same on every call, for validation.

        The stream's position does not change, but a running iteration ends: workers serve one iteration at a time.
        """
        return self._between(0, num_batches if self.num_batches is None else min(num_batches, self.num_batches))

    def _between(self, start: int, stop: int | None) -> Iterator[PackedClips]:
        self._numbers.start, self._numbers.stop = start, stop
        for batch in watch_workers(self._batches):
            if isinstance(batch, UserError):
                raise BatchLost(str(batch)) from batch
            for bad in batch.skipped:
                if bad.name not in self.bad_episodes:
                    logger.warning("skipping a bad episode: %s", bad.cause)
                    self.bad_episodes[bad.name] = bad.cause
            yield batch


def start_method(num_workers: int) -> str | None:
    """Return how to start data workers: anew where Lance is in use, whose threads and locks a fork does not survive."""
    return "spawn" if num_workers and "lance" in sys.modules else None


class BatchLost(UserError):
    """A batch cannot be had. Raised only when the next one is requested, never during a step."""


class WorkerDied(BatchLost):
    """A data worker was killed."""


def watch_workers(batches: DataLoader[Any]) -> Iterator[Any]:
    """Iterate over a loader whose workers may be killed.

    Raises:
        WorkerDied: instead of the RuntimeError that torch's SIGCHLD handler raises at any point of the program.
    """
    if batches.num_workers == 0:
        yield from batches
        return
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(batches)
    if in_main_thread and before is not None:
        signal.signal(signal.SIGCHLD, before)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # a dead worker, or a batch lost with its memory, and not an error inside a worker
            told = str(error)
            if not (told.startswith("DataLoader worker") if isinstance(error, RuntimeError) else told[:6] != "Caught"):
                raise
            raise WorkerDied(
                f"a data worker was killed, perhaps for its memory ({first_line(error)}): start again with fewer "
                "--dataloader_num_workers"
            ) from error
        yield batch


def _obey_the_trainer_only(worker: int) -> None:
    """Ignore signals to the whole process group: a stopping trainer still needs batches to finish its step.

    SIGTERM sent by the trainer still works: Python ends workers with it at exit, and waits for them.
    """

    def await_dismissal() -> None:
        trainer = os.getppid()
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS does not say who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=await_dismissal, daemon=True).start()


def _as_it_is(batch: Any) -> Any:
    return batch


def build_loader(
    config: DataConfig, split: Split = "train", seed: int = 0, rank: int = 0, world_size: int = 1
) -> ClipLoader:
    """Check the configuration against the files and return this rank's stream. The test split is not augmented."""
    clips = ClipDataset(config, PickByWeight(build_sources(config, split)), seed)
    return ClipLoader(clips, BatchNumbers(config.batch_size, rank, world_size))


def build_benchmark_loader(config: DataConfig, rank: int = 0, world_size: int = 1) -> ClipLoader:
    """Build this rank's loader of a benchmark's evaluation clips, one of each test episode.

    Clips start at the first frame (VP2: anywhere, but at the same frame every time) and keep every native frame.

    ``config.mix`` names the benchmark, which fixes the frames of a clip; only the segment's length is used.

    Raises:
        UserError: there is no such benchmark, or it has fewer clips than one batch for every rank.
    """
    clips, num_clips = benchmark_clips(config)
    numbers = BatchNumbers(config.batch_size, rank, world_size, num_samples=num_clips)
    if not numbers.num_batches:
        batches = f"batches of {config.batch_size} on each of {world_size} processes"
        raise UserError(f"{num_clips} evaluation clips are too few for {batches}; lower the evaluation batch size")
    return ClipLoader(clips, numbers)


def benchmark_clips(config: DataConfig) -> tuple[ClipDataset, int]:
    """Return a benchmark's evaluation clips in order, and their number (see :func:`build_benchmark_loader`)."""
    name = config.mix if isinstance(config.mix, str) else ",".join(name for name, _ in config.mix)
    if name in DATASET_NAMED_MIXES and len(DATASET_NAMED_MIXES[name]) == 1:
        name = str(DATASET_NAMED_MIXES[name][0][0])
    if name not in OWN_SPLITS:
        raise UserError(f"no evaluation episodes are defined for {name!r}; choose one of {', '.join(OWN_SPLITS)}")
    segment = SegmentSpec("contiguous" if name.startswith("vp2_") else "leading", config.segment.length)
    config = replace(config, mix=((name, 1.0),), segment=segment, video_stepsize=1)
    pick = PickInOrder([source for source, _ in build_sources(config, "test")])
    return ClipDataset(config, pick, seed=0), pick.num_episodes
