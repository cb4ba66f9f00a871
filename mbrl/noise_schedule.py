"""How much noise there is on an agent's actions as training goes on."""

from __future__ import annotations

import re
from collections.abc import Callable

from ivideogpt.errors import UserError

NoiseSchedule = Callable[[int], float]  # agent step -> standard deviation

NUMBER = r"\s*([-+.\deE]+)\s*"


def parse_noise_schedule(text: str) -> NoiseSchedule:
    """``linear(first, last, duration)`` in agent steps, or one number for all steps."""
    try:
        if match := re.fullmatch(rf"\s*linear\({NUMBER},{NUMBER},{NUMBER}\)\s*", text):
            first, last, duration = map(float, match.groups())
        else:
            first = last = float(text)
            duration = 1.0
    except ValueError:
        first = last = duration = -1.0
    if not (first >= 0 and last >= 0 and duration > 0):
        raise UserError(f"stddev_schedule {text!r} should be a number or like linear(1.0,0.1,100000), none negative")

    def stddev(step: int) -> float:
        done = min(max(step / duration, 0.0), 1.0)
        return (1 - done) * first + done * last

    return stddev
