"""Read frames of video files by number in presentation order. Knows containers and codecs, no episodes."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.clips.segments import Indices
from ivideogpt.errors import UserError, first_line, require

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm"})  # videos that are converted
_OPEN_VIDEOS = 8  # limit per process; each has a decoder and a frame index
_KNOWN_TIMES = 512  # videos with cached frame times per process: 8 bytes per frame
_MAX_PIXELS = 1 << 26  # limit per frame: a damaged header may claim any size
_WORTH_A_JUMP = 3  # frames that decode in about the time of a seek
_EARLIER = (0.0, 1.0, 4.0, 16.0, math.inf)  # seconds to seek before the target, tried in turn


class VideoFile:
    """One open video. Belongs to the process that opened it; threads use it one at a time.

    Decodes on one thread: loaders and converters already run one process per core, and most frames that several
    threads decode ahead of a short window are discarded.
    """

    _container: Any = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        require("av")
        self.path, self._process = os.fspath(path), os.getpid()
        self._turn = threading.Lock()
        with readable_video(self.path):
            status = os.stat(self.path)
            self._version = (self.path, status.st_mtime_ns, status.st_size)
            self._container, self._stream = _open(self.path)
        self._ahead: Iterator[Any] = iter(())
        self._current: Any = None  # last decoded frame

    def __del__(self) -> None:
        """Close it at once: its parts refer to each other, and hundreds would wait for the garbage collector."""
        if self._container is not None and self._process == os.getpid():
            self._container.close()

    @property
    def rate(self) -> float | None:
        """Return the average frames per second, if the file stores it."""
        return float(self._stream.average_rate) if self._stream.average_rate else None

    @property
    def times(self) -> NDArray[np.float64]:
        """Return the presentation time of each frame in seconds, increasing. Decodes no pictures.

        Raises:
            UserError: the file is damaged, or its frames lack distinct times.
        """
        seconds: NDArray[np.float64] = _ticks(*self._version) * np.float64(self._stream.time_base)
        return seconds

    def frames_numbered(self, numbers: Indices) -> NDArray[np.uint8]:
        """Read the frames (n, H, W, 3) with these increasing numbers in presentation order.

        Raises:
            UserError: the file is damaged, or its frames differ in size.
        """
        ticks = _ticks(*self._version)
        with self._turn, readable_video(self.path):
            frames = [rgb(self._frame(int(number), int(ticks[number]))) for number in numbers]
        if len({frame.shape for frame in frames}) > 1:
            raise UserError(f"{self.path}: frames differ in size; record it again at one size")
        return np.stack(frames)

    def frames(self) -> Iterator[tuple[float | None, Any]]:
        """Yield all PyAV frames of a newly opened file with their times; :func:`rgb` converts one to pixels."""
        with readable_video(self.path):
            for frame in self._container.decode(self._stream):
                yield frame.time, frame

    def _frame(self, number: int, pts: int) -> Any:
        if not self._within_reach(pts):
            self._seek(pts)
        while self._current is not None and self._shown(self._current) < pts:
            self._current = next(self._ahead, None)
        if self._current is None or self._current.pts != pts:
            place = f"frame {number} at {float(pts * self._stream.time_base):.3f} s"
            raise UserError(f"{self.path}: {place} cannot be decoded; copy or record it again")
        return self._current

    def _shown(self, frame: Any) -> int:
        if frame.pts is None:
            raise UserError(f"{self.path}: a frame has no time; write the video anew, as mp4")
        return int(frame.pts)

    def _within_reach(self, pts: int) -> bool:
        """Tell whether decoding on to this time is faster than seeking to a closer key frame."""
        if self._current is None or self._shown(self._current) > pts:
            return False
        entries = self._stream.index_entries
        key_frame = entries.search_timestamp(pts)
        here = entries.search_timestamp(self._current.pts, any_frame=True)
        return key_frame < 0 or key_frame - here <= _WORTH_A_JUMP

    def _seek(self, pts: int) -> None:
        """Seek to a frame at or before this time. Some containers overshoot where frames are stored out of order."""
        first = int(_ticks(*self._version)[0])
        for earlier in _EARLIER:
            start = first if math.isinf(earlier) else max(pts - round(earlier / self._stream.time_base), first)
            self._container.seek(start, stream=self._stream)
            self._ahead = self._container.decode(self._stream)
            self._current = next(self._ahead, None)
            if start == first or (self._current is not None and self._shown(self._current) <= pts):
                return


def _open(path: str) -> tuple[Any, Any]:
    """Open the container; return it and its first video stream that has a decoder."""
    import av

    container = av.open(os.path.abspath(path))  # a colon in a relative path would be parsed as a protocol
    stream: Any = next(iter(container.streams.video), None)
    if stream is None:
        fault = "holds no video; expected a stream of pictures"
    elif stream.codec_context is None:
        fault = "its video is in a format that PyAV cannot decode; write it anew as H.264"
    elif stream.width * stream.height > _MAX_PIXELS:
        fault = f"claims frames of {stream.height}x{stream.width} pixels; copy or record it again"
    else:
        stream.codec_context.thread_count = 1
        return container, stream
    container.close()
    raise UserError(f"{path}: {fault}")


@lru_cache(maxsize=_KNOWN_TIMES)
def _ticks(path: str, modified: int, size: int) -> NDArray[np.int64]:
    """Return the frame times of a file in its own unit, in presentation order; cached by change time and size."""
    with readable_video(path):
        container, stream = _open(path)
        with container:
            ticks = np.array(_packet_times(container, stream), dtype=np.int64)
    ticks.sort()
    if not len(ticks):
        raise UserError(f"{path}: holds no frames; copy or record it again")
    if (np.diff(ticks) == 0).any():
        raise UserError(f"{path}: shows two frames at the same time; write the video anew")
    return ticks


def _packet_times(container: Any, stream: Any) -> list[int]:
    """Return unsorted frame times, from the index if frames are stored in presentation order, else from all packets."""
    entries, packets = stream.index_entries, container.demux(stream)
    first = next(packets)
    indexed = len(entries) and len(entries) == stream.frames
    if indexed and entries[0].timestamp == first.pts and not stream.codec_context.has_b_frames:
        return [entry.timestamp for entry in entries if not entry.is_discard]
    packets = [packet for packet in (first, *packets) if packet.size]
    if any(packet.pts is None for packet in packets):
        raise UserError(f"{container.name}: frames have no times; write the video anew, as mp4")
    return [packet.pts for packet in packets if not packet.is_discard]


@contextmanager
def readable_video(path: str) -> Iterator[None]:
    """Turn what the video library raises into a UserError that names the file."""
    import av

    try:
        yield
    except UserError:
        raise
    except (av.FFmpegError, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path}: missing, damaged or not a video ({reason}); copy or record it again") from error


def rgb(frame: Any) -> NDArray[np.uint8]:
    """Convert a decoded frame to (H, W, 3) uint8, rotated as its file says."""
    picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", threads=1)
    quarter_turns = round(frame.rotation / 90) % 4
    return np.rot90(picture, quarter_turns) if quarter_turns else picture


_generations: dict[int, Callable[[str, int, int], VideoFile]] = {}  # caches of this process and of its forefathers


def shared_video(path: str) -> VideoFile:
    """Return an open video, shared by callers; it is opened again after a change, and in a forked process.

    Inherited videos stay open but unused after a fork: they share their file position with the parent, and closing
    them would wait for threads that were not forked.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({str(error.strerror).lower()})") from error
    if os.getpid() not in _generations:
        _generations[os.getpid()] = lru_cache(maxsize=_OPEN_VIDEOS)(lambda path, modified, size: VideoFile(path))
    return _generations[os.getpid()](path, status.st_mtime_ns, status.st_size)
