"""Colour changes of whole batches, equal to Pillow's on 8-bit frames. Knows tensors and factors; samples nothing.

Shapes: B clips of a batch, n clips that an operation changes at once, T frames. An operation changes float32 pixels
(n, T, 3, H, W), whole numbers in 0..255, in place, by one amount per clip. It gets planes (n, T, H, W) as scratch
memory: reused memory stays in the cache, and cache misses limit the speed on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

OPERATIONS = ("brightness", "contrast", "saturation", "hue")

_NOTHING = -1  # entry of `order` without an operation
_GREY = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # Pillow's weights of red, green and blue
_NUM_PLANES = 5
_PIXELS_AT_ONCE = 2**16  # on a CPU, to fit into its cache

Amounts = NDArray[np.float64]  # (n,)
Operation = Callable[[Tensor, Tensor], None]  # pixels, planes


@dataclass(frozen=True)
class Colour:
    """Colour changes of B clips.

    Arrays and not tensors: they stay on the CPU, where the operations are launched.
    """

    factors: NDArray[np.float64]  # (B, 4), a column for each of OPERATIONS; the hue's is in turns of the colour wheel
    order: NDArray[np.int64]  # (B, 4): the numbers of the operations as they follow one another, or -1 for none

    @classmethod
    def unchanged(cls, num_clips: int) -> Self:
        return cls(np.ones((num_clips, len(OPERATIONS))), np.full((num_clips, len(OPERATIONS)), _NOTHING))

    @classmethod
    def concatenate(cls, parts: Sequence[Colour]) -> Self:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("factors", "order")))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Change frames (B, T, 3, H, W) in 0..255; return float32 in [0, 1]."""
        changed = torch.empty_like(pixels, dtype=torch.float32)
        planes = torch.empty(0)
        for clips, frames in _pieces(pixels):
            operations = list(self._operations(clips, pixels.device))
            for piece in frames:
                part = changed[clips, piece]
                part.copy_(pixels[clips, piece])
                if planes.shape[1:] != part.shape[:2] + part.shape[3:]:
                    planes = part.new_empty(_NUM_PLANES, *part.shape[:2], *part.shape[3:])
                for operation in operations:
                    operation(part, planes)
                part.div_(255)
        return changed

    def _operations(self, clips: slice, device: torch.device) -> Iterator[Operation]:
        """Yield the operations on these clips, in order. Clips with the same next operation share one."""
        order, factors = self.order[clips], self.factors[clips]
        for step in order.T:
            for number in set(step.tolist()) - {_NOTHING}:
                chosen = np.flatnonzero(step == number)
                operation = _BUILD[number](factors[chosen, number], device)
                if len(chosen) < len(step):
                    operation = partial(_change_some, operation, torch.from_numpy(chosen).to(device, non_blocking=True))
                yield operation


def _pieces(pixels: Tensor) -> Iterator[tuple[slice, list[slice]]]:
    """Yield slices of clips with slices of their frames to process together; an accelerator takes all at once."""
    num_clips, num_frames = pixels.shape[:2]
    if pixels.device.type != "cpu":
        yield slice(num_clips), [slice(num_frames)]
        return
    at_once = max(1, _PIXELS_AT_ONCE // (pixels.shape[3] * pixels.shape[4]))
    for clip in range(num_clips):
        yield slice(clip, clip + 1), [slice(first, first + at_once) for first in range(0, num_frames, at_once)]


def _change_some(operation: Operation, chosen: Tensor, pixels: Tensor, planes: Tensor) -> None:
    part = pixels[chosen]
    operation(part, planes[:, : len(chosen)])
    pixels[chosen] = part


def _per_clip(amounts: Amounts, device: torch.device) -> Tensor | float:
    """Return amounts that broadcast to (n, T, 3, H, W); a number if there is one, as it is faster."""
    if len(amounts) == 1:
        return float(amounts[0])
    values = torch.from_numpy(amounts.astype(np.float32)).to(device, non_blocking=True)
    return values[:, None, None, None, None]


# ---- brightness, contrast, saturation: blends of a degenerate picture (amount 0) and the picture itself (1)


def build_brightness(amounts: Amounts, device: torch.device) -> Operation:
    factor = _per_clip(amounts, device)
    to_8_bits = _to_8_bits(amounts)

    def change(pixels: Tensor, planes: Tensor) -> None:
        to_8_bits(pixels.mul_(factor))

    return change


def build_contrast(amounts: Amounts, device: torch.device) -> Operation:
    towards_dull = _per_clip(1 - amounts, device)
    to_8_bits = _to_8_bits(amounts)
    weights = torch.tensor(_GREY).to(device, non_blocking=True)

    def change(pixels: Tensor, planes: Tensor) -> None:
        mean = (pixels.mean(dim=(-2, -1)) @ weights).round_()
        to_8_bits(pixels.lerp_(mean[..., None, None, None], towards_dull))

    return change


def build_saturation(amounts: Amounts, device: torch.device) -> Operation:
    towards_dull = _per_clip(1 - amounts, device)
    to_8_bits = _to_8_bits(amounts)

    def change(pixels: Tensor, planes: Tensor) -> None:
        red, green, blue = pixels.unbind(2)
        grey = torch.mul(red, _GREY[0], out=planes[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2]).round_()
        to_8_bits(pixels.lerp_(grey[:, :, None], towards_dull))

    return change


def _to_8_bits(amounts: Amounts) -> Callable[[Tensor], object]:
    """Return a function that truncates pixels to whole numbers and clamps them to 0..255 if an amount exceeds 1."""
    return (lambda pixels: pixels.clamp_(0, 255).floor_()) if amounts.max() > 1 else Tensor.floor_


# ---- hue


def build_hue(amounts: Amounts, device: torch.device) -> Operation:
    """Build the hue shift of Pillow, which rounds hues to 256 visible steps in both conversions."""
    shares = torch.from_numpy(_turned_shares(amounts)).to(device, non_blocking=True)

    def change(pixels: Tensor, planes: Tensor) -> None:
        # Every channel is `low` plus a share of `span`; the share depends only on the hue.
        low, span, index, share, numbers = planes
        channels = red, green, blue = pixels.unbind(2)
        torch.minimum(torch.minimum(red, green, out=low), blue, out=low)
        torch.maximum(torch.maximum(red, green, out=span), blue, out=span).sub_(low)
        _find_index(channels, low, span, index, spare=share)
        if shares.shape[1] > 1:
            index += torch.arange(0, shares[0].numel(), shares.shape[2], device=index.device)[:, None, None, None]
        rows = numbers.view(torch.int32).copy_(index).view(-1)
        for channel, table in zip(channels, shares.flatten(1)):
            torch.index_select(table, 0, rows, out=share.view(-1))
            torch.addcmul(low, span, share, out=channel)
        pixels.round_()

    return change


def _find_index(channels: tuple[Tensor, ...], low: Tensor, span: Tensor, index: Tensor, spare: Tensor) -> None:
    """Write into ``index`` the hue of each colour before the turn, as an index of :func:`_turned_shares`."""
    red, green, blue = channels
    # The distance from red in steps, 0..127.5, plus one so that the sign can store the direction. Whole numbers are
    # exact in numerator and quotient: these colours lie between two of Pillow's steps.
    torch.add(green, blue, out=index).sub_(red).sub_(low).mul_(42.5).add_(span, alpha=43.5)
    index.div_(torch.clamp(span, min=1, out=spare))
    index.copysign_(torch.sub(green, blue, out=spare))
    # 2n for a whole number n, 2n + 1 between n and n + 1
    torch.ceil(index, out=spare)
    index.floor_().add_(spare).add_(_RED_INDEX)


_RED_INDEX, _STEPS = 2 * 130, 256


def _turned_shares(turns: Amounts) -> NDArray[np.float32]:
    """Return the shares of red, green and blue at each index after the turn: a table (3, n, 521)."""
    shifts = (turns * 255).astype(np.int64)  # truncated towards zero
    return _shares()[:, (_hue_steps() + shifts[:, None]) % _STEPS]


@lru_cache(maxsize=1)
def _shares() -> NDArray[np.float32]:
    """Return the shares of red, green and blue (3, 256) at Pillow's steps; the first and the last are red.

    Around the wheel each channel is 1 for two sixths, 0 for two sixths, and a ramp in the two between.
    """
    position = np.arange(_STEPS) * (6 / 255)
    channels = [np.abs(position - 3) - 1, 2 - np.abs(position - 2), 2 - np.abs(position - 4)]
    return np.clip(np.stack(channels), 0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _hue_steps() -> NDArray[np.int64]:
    """Return Pillow's 8-bit hue of every index of :func:`_find_index`."""
    # Between n - 1 and n float rounding decides, so Pillow computes these steps.
    frame = np.rint(255 * _shares().T).astype(np.uint8)[None]
    border_steps = np.asarray(Image.fromarray(frame).convert("HSV"))[0, :, 0].astype(np.int64)
    distance = (np.arange(2 * _RED_INDEX + 1) - _RED_INDEX) / 2  # plus or minus one, and half-way between whole numbers
    step = np.where(distance > 0, distance - 1, distance + _STEPS)
    whole = np.floor(step).astype(np.int64) % _STEPS
    return np.where(step % 1 == 0, border_steps[whole], whole)


_BUILD = (build_brightness, build_contrast, build_saturation, build_hue)
