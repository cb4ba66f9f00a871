"""Ranges of pixel values, and the check that frames are in the expected one: scores of others would mean nothing."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from ivideogpt.errors import UserError

TOLERANCE = 1e-3  # relative to the larger bound: resizing and 16-bit floats overshoot by less


class PixelRange(NamedTuple):
    """Bounds of floating-point pixels, and advice on how to convert others to them."""

    low: float
    high: float
    advice: str


UNIT = PixelRange(0, 1, "divide 8-bit frames by 255, turn [-1, 1] to (x + 1) / 2, clamp what overshoots")
SIGNED = PixelRange(-1, 1, "turn [0, 1] to 2 x - 1, clamp what overshoots")
EIGHT_BIT = PixelRange(0, 255, "multiply frames in [0, 1] by 255")


def check_range(frames: Tensor, name: str, expected: PixelRange = UNIT) -> None:
    """Make sure that frames are floats in a range; UserError if not. It waits for the frames' device.

    ``name`` begins the message, e.g. "context frames".
    """
    bounds = f"[{expected.low:g}, {expected.high:g}]"
    if not frames.is_floating_point():
        raise UserError(f"{name} are {frames.dtype}, expected floats in {bounds}: {expected.advice}")
    if frames.numel() == 0:
        return
    lowest, highest = (float(bound) for bound in frames.detach().aminmax())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise UserError(f"{name} hold NaN or infinity, expected numbers in {bounds}")
    slack = TOLERANCE * expected.high
    if lowest < expected.low - slack or highest > expected.high + slack:
        dtype = str(frames.dtype).removeprefix("torch.")
        raise UserError(
            f"{name} ({dtype}) lie in [{lowest:g}, {highest:g}], expected floats in {bounds}: {expected.advice}"
        )
