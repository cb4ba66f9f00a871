"""Frames in blocks of memory that are taken as they are needed. Knows where films lie; knows no rows and no episodes.

A film is the frames of one episode in order. It lies in one block without a gap, so that frames which follow each
other are neighbours in memory. A block whose films have all left is used again.

Shapes: B films or places, N frames, H W pixels. A place is a frame's number across all blocks.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
Pixels = NDArray[np.uint8]

LARGEST_BLOCK = 16_384  # frames, 200 MB at 64 px: a batch is read block by block, so there should not be many
SMALLEST_BLOCK = 1_024


def frames_in_a_block(capacity: int) -> int:
    """For a store of about ``capacity`` frames: one block more than it needs should not weigh much."""
    return min(max(capacity // 8, SMALLEST_BLOCK), LARGEST_BLOCK)


class FilmStore:
    """Films in, runs of consecutive frames out.

    Attributes:
        block_frames: frames in a block, at least those of the longest film.
    """

    def __init__(self, frame_shape: tuple[int, ...], block_frames: int) -> None:
        self.frame_shape = frame_shape
        self.block_frames = block_frames
        self._blocks: list[Pixels] = []
        self._num_films: list[int] = []  # in each block
        self._current = -1  # the block that is being filled
        self._filled = block_frames  # of the current block

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    def reserve(self, num_frames: int) -> int:
        """Make room for a film and return the place of its first frame."""
        assert num_frames <= self.block_frames
        if self._filled + num_frames > self.block_frames:
            self._current, self._filled = self._empty_block(), 0
        place = self._current * self.block_frames + self._filled
        self._filled += num_frames
        self._num_films[self._current] += 1
        return place

    def _empty_block(self) -> int:
        if 0 in self._num_films:
            return self._num_films.index(0)
        self._blocks.append(np.empty((self.block_frames, *self.frame_shape), np.uint8))
        self._num_films.append(0)
        return len(self._blocks) - 1

    def release(self, place: int) -> None:
        """The film that begins at ``place`` is not needed any more."""
        self._num_films[place // self.block_frames] -= 1

    def film(self, place: int, num_frames: int) -> Pixels:
        """(N, 3, H, W), not a copy."""
        block, offset = divmod(place, self.block_frames)
        return self._blocks[block][offset : offset + num_frames]

    def read(self, places: Places, out: Pixels) -> None:
        """Copy the runs of N frames that begin at ``places`` (B,) into ``out`` (B, N, 3, H, W).

        Fast if neighbours in ``places`` mostly lie in one block.
        """
        blocks, offsets = np.divmod(places, self.block_frames)
        frames = offsets[:, None] + np.arange(out.shape[1])
        bounds = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(places)]
        for begin, end in pairwise(bounds):
            # Told to clip, numpy copies straight into ``out``; no frame is out of range.
            np.take(self._blocks[blocks[begin]], frames[begin:end], axis=0, out=out[begin:end], mode="clip")
