"""From recorded frames to training frames: crop, resize, colour. One random draw serves a whole clip.

Shapes: T frames, H W pixels, S training size. Recorded frames are (T, H, W, 3) uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor

from ivideogpt.errors import UserError

Range = tuple[float, float]
_CROP_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """Ranges to draw from, uniformly (the crop's aspect: log-uniformly)."""

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
                raise UserError(f"augmentation {name} ({low}, {high}) is not a rising range within its limits")


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
    """Recorded frames (T, H, W, 3) uint8 to pixels (T, 3, S, S) in 0..255.

    They stay 8-bit where their values are whole numbers, to be cheap to hand from a worker to the trainer, which ends
    with :func:`unit_range`.
    """

    size: int
    square_crop: bool = False  # central, before resizing; only without augmentation
    augmentation: Augmentation | None = None

    def __call__(self, frames: NDArray[np.uint8], rng: Generator) -> Tensor:
        height, width = frames.shape[1:3]
        if self.augmentation is None:
            return resize(central_square(height, width)(frames) if self.square_crop else frames, self.size)
        crop = draw_crop(rng, height, width, self.augmentation)
        resized = resize(crop(frames), self.size).to(torch.uint8)
        coloured = draw_colour(rng, self.augmentation)(resized.permute(0, 2, 3, 1).numpy())
        return channels_first(coloured)


def resize(frames: NDArray[np.uint8], size: int) -> Tensor:
    """(T, H, W, 3) uint8 to (T, 3, S, S): float32, bilinear with antialiasing; uint8 as it is where the size fits."""
    pixels = channels_first(frames)
    if pixels.shape[2:] == (size, size):
        return pixels
    return F.interpolate(pixels.to(torch.float32), size=(size, size), mode="bilinear", antialias=True)


def channels_first(frames: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))


def unit_range(pixels: Tensor) -> Tensor:
    """0..255 to float32 in [0, 1]."""
    # Dividing 8-bit pixels in one go takes torch's slow path for mixed types, five times as long.
    return pixels.to(torch.float32, copy=True).div_(255)


def central_square(height: int, width: int) -> Crop:
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, side)


def draw_crop(rng: Generator, height: int, width: int, ranges: Augmentation) -> Crop:
    """A random crop that fits; if none of several tries does, the largest central one within the aspect range."""
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


@dataclass(frozen=True)
class Colour:
    """Colour changes in the order in which they apply, as Pillow defines them on 8-bit frames."""

    operations: tuple[tuple[str, float], ...]

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        images = [Image.fromarray(frame) for frame in frames]
        for name, factor in self.operations:
            images = [_COLOUR_OPERATIONS[name](image, factor) for image in images]
        return np.stack([np.asarray(image) for image in images])


def draw_colour(rng: Generator, ranges: Augmentation) -> Colour:
    factors = [(name, float(rng.uniform(*getattr(ranges, name)))) for name in _COLOUR_OPERATIONS]
    return Colour(tuple(factors[i] for i in rng.permutation(len(factors))))


def _brightness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _saturation(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def _hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = int(turns * 255)  # truncated towards zero; the 8-bit wheel wraps at 256
    turned = (np.asarray(hue, dtype=np.int16) + shift).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


_COLOUR_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
}
