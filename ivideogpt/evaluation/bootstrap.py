"""Means over clips and how sure they are. Knows numbers by name; memory does not grow with the number of clips.

The bootstrap draws episodes with replacement. Of many, each is drawn a Poisson-distributed number of times with mean 1,
so every clip can be given its numbers as it comes (Chamandy et al. 2012, "Estimating uncertainty for massive data
streams"). They depend on its episode's name alone: the same clips scored in other batches, by other processes, or for
another model are drawn as often, so that two models may be compared clip by clip.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

NUM_REPLICATES = 1000
CONFIDENCE = 0.95

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A mean over ``clips`` clips, and the interval that holds 95 % of its bootstrap replicates."""

    mean: float
    low: float
    high: float
    clips: int


class BootstrapMeans(Generic[Key]):
    """Means of named values over clips. A value that is NaN does not count, nor does one that a clip lacks."""

    def __init__(self, num_replicates: int = NUM_REPLICATES) -> None:
        self.num_clips = 0
        self._num_replicates = num_replicates
        self._sums: dict[Key, NDArray[np.float64]] = {}  # (2, 1 + replicates): of values, and of weights

    def add(self, values: Mapping[Key, float], drawn_as: str) -> None:
        """The values of a clip. Clips of one episode have the same ``drawn_as``: they are no independent draws."""
        draws = np.random.default_rng(zlib.crc32(drawn_as.encode())).poisson(1.0, self._num_replicates)
        weights = np.concatenate([[1.0], draws])
        for key, value in values.items():
            if not math.isnan(value):
                self._add(key, weights * np.array([[value], [1.0]]))
        self.num_clips += 1

    def merge(self, other: BootstrapMeans[Key]) -> None:
        """Count the clips of ``other``, too."""
        for key, sums in other._sums.items():
            self._add(key, sums)
        self.num_clips += other.num_clips

    def _add(self, key: Key, sums: NDArray[np.float64]) -> None:
        self._sums[key] = self._sums[key] + sums if key in self._sums else sums

    def arrays(self) -> tuple[list[Key], NDArray[np.float64]]:
        """The keys, and their sums (keys, 2, 1 + replicates), of values and of weights."""
        return list(self._sums), np.stack(list(self._sums.values()))

    @classmethod
    def from_arrays(cls, keys: Iterable[Key], sums: NDArray[np.float64], num_clips: int) -> BootstrapMeans[Key]:
        """The inverse of :meth:`arrays`."""
        means: BootstrapMeans[Key] = cls(sums.shape[-1] - 1)
        means._sums, means.num_clips = dict(zip(keys, sums.copy(), strict=True)), num_clips
        return means

    def __contains__(self, key: Key) -> bool:
        return key in self._sums

    @property
    def keys(self) -> Iterable[Key]:
        return self._sums.keys()

    def interval(self, key: Key) -> Interval:
        return _interval(self._means(key), self._num_clips_of(key))

    def difference(self, key: Key, other: Key, of_others: BootstrapMeans[Key] | None = None) -> Interval:
        """Mean of ``key`` minus mean of ``other``, which may belong to another model's scores of the same clips."""
        others = of_others or self
        num_clips = min(self._num_clips_of(key), others._num_clips_of(other))
        return _interval(self._means(key) - others._means(other), num_clips)

    def _num_clips_of(self, key: Key) -> int:
        return int(self._sums[key][1, 0])

    def _means(self, key: Key) -> NDArray[np.float64]:
        """Of all clips, then of every replicate."""
        values, weights = self._sums[key]
        with np.errstate(invalid="ignore"):  # a replicate may have drawn no clip
            return values / weights


def _interval(means: NDArray[np.float64], num_clips: int) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    replicates = means[1:][~np.isnan(means[1:])]
    low, high = np.quantile(replicates, [tail, 1 - tail]) if len(replicates) else (math.nan, math.nan)
    return Interval(float(means[0]), float(low), float(high), num_clips)
