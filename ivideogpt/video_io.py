"""Images and animations on disk. Knows pixels, nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ivideogpt.files import atomic_file

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]


def to_pixels(frames: Tensor) -> Pixels:
    """Convert frames (..., 3, H, W) in [0, 1] to 8-bit pixels (..., H, W, 3)."""
    return frames.detach().float().clamp(0, 1).mul(255).round().byte().movedim(-3, -1).cpu().numpy()


def side_by_side(videos: Sequence[Pixels]) -> Pixels:
    """Place videos (T, H, W, 3) next to each other, (T, H, n W, 3)."""
    return np.concatenate(videos, axis=2)


def write_gif(path: str | Path, video: Pixels, fps: float = 4) -> None:
    """Write (T, H, W, 3) as an endlessly looping GIF.

    One palette for all frames keeps still parts from flickering; the octree gives colours of a few pixels, such as a
    gripper's, a place in it, where median cut loses them.
    """
    palette = Image.fromarray(video.reshape(-1, *video.shape[2:])).quantize(method=Image.Quantize.FASTOCTREE)
    first, *rest = (Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in video)
    with atomic_file(path) as file:
        first.save(file, format="GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)


def write_png(path: str | Path, picture: Pixels) -> None:
    """Write an image (H, W, 3)."""
    with atomic_file(path) as file:
        Image.fromarray(picture).save(file, format="PNG")
