"""The size at which converters store frames: the training's own preprocessing, rounded to 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BYTES_AT_ONCE = 16 << 20  # of recorded frames: as floats they take four times as much


@dataclass(frozen=True)
class StoredSize:
    """Frames (N, H, W, 3) uint8 to (N, S, S, 3) uint8, or as they are."""

    size: int | None = None
    square_crop: bool = False  # central, before resizing

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = frames.shape[1:3]
        if self.square_crop:
            from ivideogpt.data.clips.transforms import central_square  # brings torch, seconds in every worker process

            frames = central_square(height, width)(frames)
        if self.size is None or frames.shape[1:3] == (self.size, self.size):
            return frames
        at_once = max(_BYTES_AT_ONCE // frames[0].nbytes, 1)
        parts = [self._resized(frames[first : first + at_once]) for first in range(0, len(frames), at_once)]
        return np.concatenate(parts)

    def _resized(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        import torch

        from ivideogpt.data.clips.transforms import resize

        assert self.size is not None
        pixels = resize(frames, self.size).round().to(torch.uint8)
        return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
