"""Schedule of the noise on an agent's actions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from ivideogpt.errors import UserError

NoiseSchedule = Callable[[int], float]  # agent step -> standard deviation

NUM_NUMBERS = {"": 1, "linear": 3, "step_linear": 5}


def parse_noise_schedule(text: str) -> NoiseSchedule:
    """Read ``linear(first, last, duration)``, ``step_linear(first, middle, duration, last, duration)`` or one number.

    Durations are agent steps; noise is linear in each and stays at its last value.
    """
    match = re.fullmatch(r"\s*(?:(linear|step_linear)\((.*)\)|(.*))\s*", text)
    kind, inside, alone = match.groups() if match else (None, None, text)
    try:
        numbers = [float(number) for number in (inside or alone or "").split(",")]
    except ValueError:
        numbers = []
    first, levels, durations = numbers[:1], numbers[1::2], numbers[2::2]
    valid = len(numbers) == NUM_NUMBERS[kind or ""] and all(map(math.isfinite, numbers))
    if not (valid and min(first + levels) >= 0 and min(durations, default=1) > 0):
        raise UserError(
            f"stddev_schedule {text!r} should be a number, or like linear(1.0,0.1,100000) or "
            "step_linear(1.0,0.1,100000,0.05,50000), none negative"
        )

    def stddev(step: int) -> float:
        (level,), start = first, 0.0
        for next_level, duration in zip(levels, durations, strict=True):
            done = min(max((step - start) / duration, 0.0), 1.0)
            level, start = (1 - done) * level + done * next_level, start + duration
        return level

    return stddev
