"""Detect impossible values of actions and rewards. Knows numbers only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivideogpt.errors import UserError

LARGEST = 1e10  # above seconds since 1970, below nanoseconds and most uninitialised memory


def check_plausible(values: NDArray[Any], source: str, advice: str = "repair or leave out the episode") -> None:
    """Raise UserError for NaN, infinity, and numbers that no action or reward can be.

    Args:
        values: one row per frame.
        source: start of the message.
        advice: end of the message.
    """
    finite = np.isfinite(values)
    if not finite.all():
        raise UserError(f"{source} holds NaN or infinite values (first in row {_first_row(~finite)}); {advice}")
    absurd = (values > LARGEST) | (values < -LARGEST)
    if absurd.any():
        raise UserError(
            f"{source} holds {values[absurd][0]:g} (row {_first_row(absurd)}); no action or reward is beyond "
            f"{LARGEST:g}; {advice}"
        )


def _first_row(flags: NDArray[np.bool_]) -> int:
    return int(np.argwhere(flags)[0][0]) if flags.ndim else 0
