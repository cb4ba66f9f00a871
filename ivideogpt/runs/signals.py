"""SIGTERM and Ctrl-C as a flag that the training loop reads."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """A signal came during a long part of a step, such as an evaluation or the initial updates."""


class StopSignal:
    """The first signal asks a run to end after its step; a second one ends it at once. ``number`` is 0 before."""

    def __init__(self) -> None:
        self.number = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
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
        if self.number:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        logger.warning("%s: ending after this step; a second one ends at once, back at the last checkpoint", name)
        self.number = number
