"""Pool of worker processes with clean shutdown. Knows nothing of the jobs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from ivideogpt.errors import UserError

_JOBS_AHEAD = 4  # queued jobs per worker

Outcomes = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def worker_pool(workers: int, begin: Callable[..., None] | None = None, *arguments: Any) -> Iterator[Outcomes]:
    """Yield a ``map`` over several processes; a single worker is this process.

    Jobs are consumed lazily. Leaving the block waits for the jobs in progress.

    Args:
        begin: called first in each process, with the arguments.

    Raises:
        UserError: a process died.
    """
    if workers == 1:
        if begin is not None:
            begin(*arguments)
        yield map
        return
    context = multiprocessing.get_context("spawn")  # video, HDF5 and OpenGL libraries do not survive a fork
    pool = ProcessPoolExecutor(workers, context, start_worker, (begin, *arguments))

    def run(work: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        """Map without ever cancelling a job, unlike ``pool.map``: after a worker died, Python 3.11 would then hang."""
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
        told = "a worker process was killed, perhaps for its memory; run again to go on, with fewer --num_workers"
        raise UserError(told) from error
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker(begin: Callable[..., None] | None = None, *arguments: Any) -> None:
    """Prepare a worker process: it leaves Ctrl-C to its parent, and ends with it, as jobs would never come again."""

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for torch, as there is one process per core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent handles it
    threading.Thread(target=end_with_parent, daemon=True).start()
    if begin is not None:
        begin(*arguments)
