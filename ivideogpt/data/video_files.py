"""Frames out of video files: those shown at given times, or all in order. Knows containers and codecs, no episodes."""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivideogpt.errors import UserError, require

_OPEN_VIDEOS = 8  # kept per process, each with a decoder and an index of its frames
_WORTH_A_JUMP = 3  # frames; decoding these takes about as long
_EARLIER = (0.0, 1.0, 4.0, 16.0, math.inf)  # seconds


class VideoFile:
    """One open video. Belongs to the process that opened it; threads take turns.

    Works on one thread: loaders and converters already run a process per core, and most of what several threads decode
    ahead of a short window is thrown away.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        require("av")
        import av

        self.path = os.fspath(path)
        self._turn = threading.Lock()
        with self._readable():
            self._container = av.open(self.path)
            if not self._container.streams.video:
                raise UserError(f"{self.path}: holds no video; expected a stream of pictures")
            self._stream: Any = self._container.streams.video[0]
            self._stream.codec_context.thread_count = 1
            self._shortest = self._shortest_delay() if self._container.format.name == "gif" else None
        self._ahead: Iterator[Any] = iter(())
        self._current: Any = None  # the frame last decoded

    @property
    def rate(self) -> float | None:
        """Frames per second on average, if the file says so."""
        if self._shortest:
            return 1 / self._shortest
        return float(self._stream.average_rate) if self._stream.average_rate else None

    def frames_at(self, seconds: NDArray[np.float64], tolerance: float) -> NDArray[np.uint8]:
        """The frames (n, H, W, 3) shown at these times, which rise.

        Raises:
            UserError: the file is damaged, or no frame's time is within ``tolerance`` of one asked for.
        """
        with self._turn, self._readable():
            return np.stack([rgb(self._frame_at(float(time), tolerance)) for time in seconds])

    def frames(self) -> Iterator[tuple[float, Any]]:
        """All frames as PyAV has them, with their times, from the first on; :func:`rgb` turns one into pixels.

        GIF writers merge equal frames into one that is shown longer: it counts as often as the shortest fits into it.
        """
        with self._readable():
            self._container.seek(0, stream=self._stream)
            for frame in self._container.decode(self._stream):
                for repeat in range(self._count(frame)):
                    yield frame.time + (repeat * self._shortest if self._shortest else 0), frame

    def _count(self, frame: Any) -> int:
        return max(round(frame.duration * frame.time_base / self._shortest), 1) if self._shortest else 1

    def _shortest_delay(self) -> float | None:
        """In seconds."""
        ticks = min((packet.duration for packet in self._container.demux(self._stream) if packet.duration), default=0)
        return float(ticks * self._stream.time_base) if ticks else None

    def _frame_at(self, seconds: float, tolerance: float) -> Any:
        if not self._within_reach(seconds, tolerance):
            self._seek(seconds, tolerance)
        while self._current is not None and self._current.time < seconds - tolerance:
            self._current = next(self._ahead, None)
        if self._current is None or self._current.time > seconds + tolerance:
            raise UserError(
                f"{self.path}: no frame at {seconds:.3f} s, which the episode should have; "
                "copy or record it again, or leave the episode out"
            )
        return self._current

    def _within_reach(self, seconds: float, tolerance: float) -> bool:
        """Whether decoding on is the way to this time, rather than jumping to a key frame closer to it."""
        if self._current is None or self._current.time > seconds + tolerance:
            return False
        entries = self._stream.index_entries
        key_frame = entries.search_timestamp(self._ticks(seconds))
        here = entries.search_timestamp(self._current.pts, any_frame=True)
        return key_frame < 0 or key_frame - here <= _WORTH_A_JUMP

    def _seek(self, seconds: float, tolerance: float) -> None:
        """To a frame at or before this time. Some containers overshoot where frames are stored out of order."""
        for earlier in _EARLIER:
            start = max(seconds - tolerance - earlier, 0.0)
            self._container.seek(self._ticks(start), stream=self._stream)
            self._ahead = self._container.decode(self._stream)
            self._current = next(self._ahead, None)
            if start == 0 or (self._current is not None and self._current.time <= seconds + tolerance):
                return

    def _ticks(self, seconds: float) -> int:
        return round(seconds / self._stream.time_base)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        import av

        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise UserError(
                f"{self.path}: missing, damaged or not a video ({getattr(error, 'strerror', None) or error}); "
                "copy or record it again"
            ) from error


def rgb(frame: Any) -> NDArray[np.uint8]:
    """A decoded frame as (H, W, 3), the way up that its file asks for."""
    picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", threads=1)
    quarter_turns = round(frame.rotation / 90) % 4
    return np.rot90(picture, quarter_turns) if quarter_turns else picture


class _OpenVideos:
    """The videos most recently used by this process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._files: OrderedDict[tuple[str, int, int], VideoFile] = OrderedDict()

    def get(self, path: str, modified: int, size: int) -> VideoFile:
        key = (path, modified, size)
        if key not in self._files:
            self._files[key] = VideoFile(path)
            if len(self._files) > _OPEN_VIDEOS:
                self._files.popitem(last=False)
        self._files.move_to_end(key)
        return self._files[key]


_generations = [_OpenVideos()]  # of this process, and of those that it was forked from


def shared_video(path: str) -> VideoFile:
    """The file, left open for the next caller; opened anew when it has changed, and in a forked process.

    What a forked process inherits is kept unused: it shares its place in the file with the parent, and closing it would
    wait for threads that were not forked.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({str(error.strerror).lower()}); expected a video of the dataset"
        ) from error
    if _generations[-1].process != os.getpid():
        _generations.append(_OpenVideos())
    return _generations[-1].get(path, status.st_mtime_ns, status.st_size)
