"""SIGTERM and Ctrl-C as a flag that the training loop reads."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

SAME_SIGNAL = 1.0  # seconds
PR_SET_PDEATHSIG = 1  # number in linux/prctl.h


class Interrupted(Exception):
    """A signal came during a long part of a step, such as an evaluation or the initial updates."""


class StopSignal:
    """The first signal asks a run to end after its step; a second one ends it at once. ``number`` is 0 before.

    A launcher passes on what a job's manager has sent to all processes: what comes within a second is the same signal.
    """

    def __init__(self) -> None:
        self.number = 0
        self._came = -math.inf

    @contextmanager
    def listening(self) -> Iterator[None]:
        _end_with_launcher()
        with ExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT):
                stack.callback(signal.signal, number, signal.signal(number, self._note))
            yield

    def end_at_once(self) -> None:
        """Let signals end the process from now on: there is nothing to save first."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.number:
            raise Interrupted

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number and now - self._came < SAME_SIGNAL:
            return
        if self.number:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        logger.warning("%s: ending after this step; a second one ends at once, back at the last checkpoint", name)
        self.number, self._came = number, now


def _end_with_launcher() -> None:
    """Ask Linux for SIGTERM when ``accelerate launch`` ends: to one process it passes no signal on."""
    is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if is_launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
