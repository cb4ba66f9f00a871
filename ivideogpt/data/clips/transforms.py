"""Preprocess recorded frames for training: crop, resize, sample colour changes. One sample serves a whole clip.

Shapes: T frames, H W pixels, S training size. Recorded frames are (T, H, W, 3) uint8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.data.clips.colour import OPERATIONS, Colour
from ivideogpt.errors import UserError

Range = tuple[float, float]
_CROP_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """Ranges to sample from uniformly; the aspect of the crop is log-uniform."""

    crop_scale: Range = (0.8, 1.0)  # area of the crop, relative to the squared short side
    crop_ratio: Range = (0.9, 1.1)  # width / height of the crop
    brightness: Range = (0.9, 1.1)
    contrast: Range = (0.9, 1.1)
    saturation: Range = (0.9, 1.1)
    hue: Range = (-0.05, 0.05)  # turns of the colour wheel

    def __post_init__(self) -> None:
        for name, (low, high) in vars(self).items():
            floor = -0.5 if name == "hue" else 0.0
            if not floor <= low <= high or (name == "hue" and high > 0.5) or (name == "crop_ratio" and low == 0):
                raise UserError(f"augmentation {name} ({low}, {high}) is not an increasing range within its limits")


STRONG_AUGMENTATION = Augmentation(
    crop_scale=(0.6, 1.0),
    crop_ratio=(0.75, 1.33),
    brightness=(0.6, 1.4),
    contrast=(0.6, 1.4),
    saturation=(0.6, 1.4),
    hue=(-0.5, 0.5),
)


@dataclass(frozen=True)
class Crop:
    top: int
    left: int
    height: int
    width: int

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return frames[:, self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Preprocess:
    """Crop and resize frames (T, H, W, 3) uint8 to pixels (T, 3, S, S) in 0..255; :meth:`colour` is separate.

    Pixels are 8-bit where their values are whole numbers, which makes the transfer to the device cheap.
    """

    size: int
    square_crop: bool = False  # central, before resizing; only without augmentation
    augmentation: Augmentation | None = None

    def __call__(self, frames: NDArray[np.uint8], rng: Generator) -> Tensor:
        height, width = frames.shape[1:3]
        if self.augmentation is None:
            return resize(central_square(height, width)(frames) if self.square_crop else frames, self.size)
        return truncate(resize(sample_crop(rng, height, width, self.augmentation)(frames), self.size))

    def colour(self, rng: Generator) -> Colour | None:
        """Sample the colour change of the clip. Call it after the crop, which comes first in the random stream."""
        return None if self.augmentation is None else sample_colour(rng, self.augmentation)


def resize(frames: NDArray[np.uint8], size: int) -> Tensor:
    """Resize (T, H, W, 3) uint8 to (T, 3, S, S) float32, bilinear with antialiasing; frames of this size stay uint8."""
    pixels = channels_first(frames)
    height, width = pixels.shape[2:]
    if (height, width) == (size, size):
        return pixels
    # Dense matrix products: several times as fast as torch's interpolation at training sizes.
    return resize_weights(height, size) @ (pixels.to(torch.float32) @ resize_weights(width, size).T)


@lru_cache(maxsize=128)
def resize_weights(length: int, size: int) -> Tensor:
    """Return the interpolation matrix (size, length) of one axis."""
    lines = torch.eye(length)[None, None]
    return F.interpolate(lines, size=(size, length), mode="bilinear", antialias=True)[0, 0]


def truncate(pixels: Tensor) -> Tensor:
    """Round pixels down to uint8."""
    if pixels.dtype == torch.uint8:
        return pixels
    whole = np.empty(pixels.shape, np.uint8)
    # Rounding errors in the weights must not darken areas of one colour.
    np.add(pixels.numpy(), np.float32(1e-3), out=whole, casting="unsafe")
    return torch.from_numpy(whole)


def channels_first(frames: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))


def unit_range(pixels: Tensor) -> Tensor:
    """Scale pixels from 0..255 to float32 in [0, 1]."""
    if pixels.device.type == "cpu":  # numpy converts and divides in one pass, in half the time
        return torch.from_numpy(np.divide(pixels.numpy(), np.float32(255), dtype=np.float32))
    return pixels.to(torch.float32, copy=True).div_(255)


def central_square(height: int, width: int) -> Crop:
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, side)


def sample_crop(rng: Generator, height: int, width: int, ranges: Augmentation) -> Crop:
    """Sample a crop that fits; if no attempt does, return the largest central one within the aspect range."""
    low_ratio, high_ratio = ranges.crop_ratio
    for _ in range(_CROP_TRIES):
        area = min(height, width) ** 2 * rng.uniform(*ranges.crop_scale)
        ratio = math.exp(rng.uniform(math.log(low_ratio), math.log(high_ratio)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height, endpoint=True))
            left = int(rng.integers(width - crop_width, endpoint=True))
            return Crop(top, left, crop_height, crop_width)
    crop_width = min(width, round(height * high_ratio))
    crop_height = min(height, round(width / low_ratio))
    return Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def sample_colour(rng: Generator, ranges: Augmentation) -> Colour:
    """Sample the colour change of one clip."""
    factors = [rng.uniform(*getattr(ranges, name)) for name in OPERATIONS]
    return Colour(np.array([factors]), rng.permutation(len(OPERATIONS))[None])
