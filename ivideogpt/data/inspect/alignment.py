"""Estimate whether actions are stored beside the right frames, from the motion in the frames. Knows arrays only.

``action[i]`` should lead from ``image[i]`` to ``image[i + 1]``. So the motion between these two is correlated with the
size of ``action[i + k]`` for several shifts k, and the best shift is reported: 0 is right. A shift above 0 means that
the picture moved *before* its action, which only happens in a wrong recording. A shift below 0 is normal for robots
with latency, and says little.

If actions are target positions, their change correlates with motion, not their size; both signals are tried.
Shapes: N frames, D action dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.floating[Any]]

MAX_SHIFT = 2
SHIFTS = tuple(range(-MAX_SHIFT, MAX_SHIFT + 1))
MIN_CORRELATION = 0.25  # below it, the motion is not informative
SURE = 0.999
_BLOCK = 10  # frames that count as one observation, as neighbouring frames are correlated
_MIN_BLOCKS = 15
_SWITCH_VALUES = 3  # dimensions with at most this many values, such as a gripper's, are ignored


@dataclass(frozen=True)
class Alignment:
    """Correlation of motion with actions shifted by k, over all inspected episodes."""

    signal: str  # signal computed from the actions: size or change
    correlations: dict[int, float]  # by shift
    best_shift: int
    confidence: float  # probability that the best shift beats all others or, if above 0, all shifts up to 0
    num_blocks: int

    @property
    def is_clear(self) -> bool:
        enough = self.num_blocks >= _MIN_BLOCKS and self.correlations[self.best_shift] >= MIN_CORRELATION
        return enough and self.confidence >= SURE

    @property
    def is_wrong(self) -> bool:
        return self.is_clear and self.best_shift > 0

    @property
    def verdict(self) -> str:
        shift = self.best_shift
        if self.is_wrong:
            return (
                f"action[i+{shift}] goes with the motion from image[i] to image[i+1], so actions come "
                f"{_frames(shift)} late: row i should hold what is done at image[i]; drop the first {_rows(shift)}"
            )
        if self.correlations[shift] < MIN_CORRELATION:
            return "cannot be told: the motion in the picture hardly follows the actions"
        if shift > 0 or (shift == 0 and not self.is_clear):
            fits = f"shift {shift} fits best" + (", as it should" if shift == 0 else "")
            return f"cannot be told for sure: {fits}, {self._doubt}; more episodes help, and so does the preview"
        if shift == 0:
            return "as it should be: action[i] goes with the motion from image[i] to image[i+1]"
        return (
            f"no fault seen: the motion follows the actions by {_frames(-shift)}, as it does where a robot or camera "
            "lags (or where actions are stored early)"
        )

    @property
    def _doubt(self) -> str:
        """Say which evidence is missing for a clear result."""
        if self.confidence >= SURE:
            return f"but {self.num_blocks} stretches of {_BLOCK} frames tell, where {_MIN_BLOCKS} would settle it"
        shown = math.floor(self.confidence * 1000) / 1000  # rounded up, it could read as enough
        return f"with a confidence of {shown:.1%} where {SURE:.1%} would settle it"


def estimate_alignment(motions: Sequence[Series], actions: Sequence[Series]) -> Alignment | None:
    """Estimate it from the motion (N - 1,) after each frame and the actions (N, D) of episodes; None without motion."""
    if not motions:
        return None
    rows_of_all = np.concatenate(actions)
    deviation = rows_of_all.std(axis=0)
    switches = [len(np.unique(column)) <= _SWITCH_VALUES for column in rows_of_all.T]
    scale = np.where(switches | (deviation == 0), np.inf, deviation)  # infinity removes switches and constants
    sizes = [np.linalg.norm(rows / scale, axis=1) for rows in actions]
    changes = [np.linalg.norm(np.diff(rows, axis=0, prepend=rows[:1]) / scale, axis=1) for rows in actions]
    candidates = [_compare(motions, sizes, "size"), _compare(motions, changes, "change")]
    found = [candidate for candidate in candidates if candidate is not None]
    return max(found, key=lambda alignment: max(alignment.correlations.values()), default=None)


def _compare(motions: Sequence[Series], signals: Sequence[Series], name: str) -> Alignment | None:
    """Compute the correlations over all frames, and the confidence that the best one is the best."""
    pairs = [_products(motion, signal) for motion, signal in zip(motions, signals)]
    products = [pair for pair in pairs if pair is not None]
    if not products:
        return None
    means = np.concatenate(products, axis=1).mean(axis=1)
    best = int(means.argmax())
    whole = [product[:, : product.shape[1] // _BLOCK * _BLOCK] for product in products]
    blocks = np.concatenate(whole, axis=1).reshape(len(SHIFTS), -1, _BLOCK).mean(axis=2)
    rivals = [i for i, shift in enumerate(SHIFTS) if (shift <= 0 if SHIFTS[best] > 0 else i != best)]
    confidence = min(_probability_positive(blocks[best] - blocks[rival]) for rival in rivals)
    correlations = {shift: float(mean) for shift, mean in zip(SHIFTS, means)}
    return Alignment(name, correlations, SHIFTS[best], confidence, blocks.shape[1])


def _products(motion: Series, signal: Series) -> NDArray[np.float64] | None:
    """Return products of standardised motion and signal, (shifts, n), whose mean is the correlation.

    All shifts use the same frames of motion.
    """
    frames = np.arange(MAX_SHIFT, len(motion) - MAX_SHIFT)
    if len(frames) < _BLOCK:
        return None
    parts = [_standardised(motion[frames]), *(_standardised(signal[frames + shift]) for shift in SHIFTS)]
    if any(part is None for part in parts):
        return None
    first, *rest = parts
    return np.stack([first * other for other in rest])  # type: ignore[operator]


def _standardised(values: Series) -> NDArray[np.float64] | None:
    deviation = values.std()
    return (values - values.mean()) / deviation if deviation > 1e-6 * (abs(values.mean()) + 1e-6) else None


def _probability_positive(differences: NDArray[np.float64]) -> float:
    """Estimate the probability that the mean is above 0, by the normal approximation."""
    if len(differences) < 2:
        return 0.5
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    return 0.5 * math.erfc(-differences.mean() / (error + 1e-12) / math.sqrt(2))


def _frames(number: int) -> str:
    return f"{number} frame{'s' * (number > 1)}"


def _rows(number: int) -> str:
    return "row" if number == 1 else f"{number} rows"
