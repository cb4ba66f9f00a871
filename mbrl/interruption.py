"""SIGTERM and Ctrl-C as a question that the loop asks."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """A signal has come in the middle of a step's longer parts, an evaluation or the initial updates."""


class Interruption:
    """
    Attributes:
        number: of the signal that has come; 0 so far.
    """

    def __init__(self) -> None:
        self.number = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        with ExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT):
                stack.callback(signal.signal, number, signal.signal(number, self._note))
            yield

    def check(self) -> None:
        """
        Raises:
            Interrupted: a signal has come.
        """
        if self.number:
            raise Interrupted

    def _note(self, number: int, frame: FrameType | None) -> None:
        """First time: the loop ends after this step, or in it where nothing is lost. Second time: it ends now."""
        if self.number:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        logger.warning("%s: ending after this step; a second one ends at once, back at the last snapshot", name)
        self.number = number
