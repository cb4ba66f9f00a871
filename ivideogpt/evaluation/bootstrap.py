"""Compute means over clips with bootstrap intervals over episodes. Knows numbers by name.

The bootstrap resamples whole episodes: clips of one episode are not independent. The seed is fixed, so two reports on
the same clips resample the same episodes, and their difference is taken replicate by replicate.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

NUM_REPLICATES = 1000
CONFIDENCE = 0.95

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A mean (or a correlation) and its 95 % interval; NaN where there is none. ``clips`` are those behind a mean."""

    mean: float
    low: float
    high: float
    clips: int | None = None

    def text(self, decimals: int) -> str:
        if math.isnan(self.mean):
            return "-"
        bounds = "" if math.isnan(self.low) else f" [{self.low:.{decimals}f}, {self.high:.{decimals}f}]"
        return f"{self.mean:.{decimals}f}{bounds}"

    def as_json(self) -> dict[str, float | int | None]:
        return {name: None if value is None or math.isnan(value) else value for name, value in asdict(self).items()}


class BootstrapMeans(Generic[Key]):
    """Means of named values over ``clips``, of one of the ``episodes`` each. NaN and missing values do not count."""

    def __init__(self, clips: Sequence[Mapping[Key, float]], episodes: Sequence[str]) -> None:
        self._columns = {key: column for column, key in enumerate(dict.fromkeys(key for clip in clips for key in clip))}
        self._values = np.array([[clip.get(key, math.nan) for key in self._columns] for clip in clips], np.float64)
        self._episodes = list(episodes)

    def __contains__(self, key: Key) -> bool:
        return key in self._columns and self._num_clips(key) > 0

    @property
    def keys(self) -> Iterable[Key]:
        return (key for key in self._columns if key in self)

    def mean(self, key: Key) -> float:
        values = self._values[:, self._columns[key]]
        known = values[~np.isnan(values)]
        return float(np.cumsum(known)[-1] / len(known))  # summed in the order of clips, unlike numpy's pairwise sum

    def interval(self, key: Key) -> Interval:
        known = ~np.isnan(self._values[:, self._columns[key]])
        if len(set(itertools.compress(self._episodes, known))) < 2:  # one episode says nothing of how others differ
            return Interval(self.mean(key), math.nan, math.nan, int(known.sum()))
        return interval_of(self.mean(key), self._replicates[:, self._columns[key]], int(known.sum()))

    def difference(self, key: Key, other: Key, others: BootstrapMeans[Key] | None = None) -> Interval:
        """Return the mean of ``key`` minus ``other``, which may be in ``others``, over the clips that have both."""
        others = others or self
        differences = self._values[:, self._columns[key]] - others._values[:, others._columns[other]]
        paired = BootstrapMeans([{"difference": value} for value in differences.tolist()], self._episodes)
        return paired.interval("difference") if "difference" in paired else Interval(math.nan, math.nan, math.nan, 0)

    def _num_clips(self, key: Key) -> int:
        return int((~np.isnan(self._values[:, self._columns[key]])).sum())

    @functools.cached_property
    def _replicates(self) -> NDArray[np.float64]:
        """Return bootstrap means (replicates, keys); NaN for replicates without the value."""
        names, episode_of_clip = np.unique(self._episodes, return_inverse=True)
        num_episodes, known = len(names), ~np.isnan(self._values)
        sums, counts = np.zeros((2, num_episodes, len(self._columns)))
        np.add.at(sums, episode_of_clip, np.where(known, self._values, 0.0))
        np.add.at(counts, episode_of_clip, known)
        times = _times_drawn(num_episodes)
        with np.errstate(invalid="ignore"):
            return (times @ sums) / (times @ counts)


@functools.lru_cache(maxsize=4)
def _times_drawn(num_episodes: int) -> NDArray[np.float64]:
    """Return how many times each replicate (replicates, episodes) has each episode."""
    rng = np.random.default_rng(0)
    return rng.multinomial(num_episodes, [1 / num_episodes] * num_episodes, NUM_REPLICATES).astype(np.float64)


def interval_of(mean: float, replicates: NDArray[np.float64], num_clips: int | None = None) -> Interval:
    """Return the interval that holds 95 % of the replicates that are known."""
    known, tail = replicates[~np.isnan(replicates)], (1 - CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (math.nan, math.nan)
    return Interval(mean, float(low), float(high), num_clips)
