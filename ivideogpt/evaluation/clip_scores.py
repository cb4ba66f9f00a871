"""What is known of one scored clip, and what all of them come to. Knows numbers by name; knows no pixels.

Shapes: N samples, T frames of a clip, d features.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.evaluation.bootstrap import NUM_REPLICATES, BootstrapMeans, Interval
from ivideogpt.evaluation.protocols import COLUMNS
from ivideogpt.metrics.fvd import FeatureStats, frechet_distance

Key = tuple[str, str, str]  # column, candidate, metric
Summaries = dict[str, dict[str, dict[str, float]]]  # column -> candidate -> metric -> number
Curves = dict[str, dict[str, list[float]]]  # candidate -> metric -> mean over samples of each frame
Features = dict[tuple[str, str], NDArray[np.float32]]  # (column, candidate or "truth") -> (samples, d)

TRUTH = "truth"
PREDICTION = "prediction"
SHUFFLED = "shuffled_actions"


@dataclass(frozen=True)
class ClipScores:
    """Of one clip, however many samples of it there were.

    Attributes:
        number: its place in the list of clips.
        frames_checksum: of the true frames.
    """

    number: int
    summaries: Summaries
    frames_checksum: str = ""
    curves: Curves = field(default_factory=dict)
    features: Features = field(default_factory=dict)
    codes: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # ids of tokens, for counting

    @classmethod
    def of(
        cls,
        number: int,
        truth: Tensor,
        num_context: int,
        scores: Mapping[str, Mapping[str, Tensor]],
        features: Features,
    ) -> ClipScores:
        """From (N, T) scores by candidate and metric of a clip (T, C, H, W)."""
        num_samples = max(len(of["mse"]) for of in scores.values())
        summaries: Summaries = {}
        for column, summarise in COLUMNS.items():
            # the best of one sample of a random candidate is no match for the best of several of another
            comparable = [name for name in scores if not (summarise.takes_best and _is_one_of_many(name, scores))]
            if num_samples > 1 or column != "future_best":
                summaries[column] = {name: summarise(scores[name], num_context) for name in comparable}
        curves = {
            name: {metric: values.mean(dim=0).tolist() for metric, values in of.items()} for name, of in scores.items()
        }
        return cls(number, summaries, frames_checksum(truth), curves, features)

    def as_json(self) -> dict[str, Any]:
        """Without features, which are for sums over clips only, and without what could not be measured."""
        known = {
            column: {
                name: {metric: value for metric, value in metrics.items() if not math.isnan(value)}
                for name, metrics in candidates.items()
            }
            for column, candidates in self.summaries.items()
        }
        return {"clip": self.number, "frames": self.frames_checksum, "scores": known}


def by_key(summaries: Summaries) -> dict[Key, float]:
    """The numbers by column, candidate and metric."""
    return {
        (column, name, metric): value
        for column, candidates in summaries.items()
        for name, metrics in candidates.items()
        for metric, value in metrics.items()
    }


def frames_checksum(frames: Tensor) -> str:
    """Of frames in [0, 1] as 8-bit pixels."""
    pixels = (frames.float() * 255).round().clamp(0, 255).byte().cpu().numpy()
    return hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest()


def _is_one_of_many(name: str, scores: Mapping[str, Mapping[str, Tensor]]) -> bool:
    return name == SHUFFLED and len(scores[name]["mse"]) < len(scores[PREDICTION]["mse"])


def scores_by_clip(scores: Mapping[str, Mapping[str, Tensor]]) -> Iterator[dict[str, dict[str, Tensor]]]:
    """(B, N, T) by candidate and metric to (N, T), clip by clip, on the CPU."""
    on_cpu = {name: {metric: values.cpu() for metric, values in of.items()} for name, of in scores.items()}
    num_clips = len(next(iter(next(iter(on_cpu.values())).values())))
    for clip in range(num_clips):
        yield {name: {metric: values[clip] for metric, values in of.items()} for name, of in on_cpu.items()}


def features_by_clip(features: Mapping[tuple[str, str], Tensor], num_clips: int) -> Iterator[Features]:
    """(B, N, d) by span and candidate to (N, d), clip by clip."""
    for clip in range(num_clips):
        yield {key: values[clip].numpy() for key, values in features.items()}


class Tally:
    """Sums over scored clips."""

    def __init__(self, num_replicates: int = NUM_REPLICATES) -> None:
        self.means: BootstrapMeans[tuple[Any, ...]] = BootstrapMeans(num_replicates)
        self._features: dict[tuple[str, str], FeatureStats] = {}
        self._codes: dict[str, NDArray[np.int64]] = {}

    def add(self, clip: ClipScores, drawn_as: str = "") -> None:
        """``drawn_as`` is the same for clips that are not independent (see :class:`BootstrapMeans`)."""
        values: dict[tuple[Any, ...], float] = {**by_key(clip.summaries)}
        for name, curves in clip.curves.items():
            for metric, curve in curves.items():
                values |= {("frame", name, metric, frame): value for frame, value in enumerate(curve)}
        self.means.add(values, drawn_as)
        for key, features in clip.features.items():
            self._features.setdefault(key, FeatureStats(capture_mean_cov=True)).append(features)
        for book, codes in clip.codes.items():
            self._count_codes(book, np.bincount(codes))

    def _count_codes(self, book: str, counts: NDArray[np.int64]) -> None:
        size = max(len(counts), len(self._codes.get(book, ())))
        self._codes[book] = self.code_counts(book, size) + np.pad(counts, (0, size - len(counts)))

    def merge(self, other: Tally) -> None:
        """Count the clips of ``other``, too: those of another process."""
        self.means.merge(other.means)
        for book, counts in other._codes.items():
            self._count_codes(book, counts)
        for key, features in other._features.items():
            self._features.setdefault(key, FeatureStats(capture_mean_cov=True)).merge(features)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays that np.savez takes."""
        keys, sums = self.means.arrays()
        return {
            "keys": np.array(json.dumps(keys)),
            "sums": sums,
            "num_clips": np.array(self.means.num_clips),
            **{f"features/{json.dumps(key)}": stats.sums() for key, stats in self._features.items()},
            **{f"codes/{book}": counts for book, counts in self._codes.items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Tally:
        """The inverse of :meth:`arrays`."""
        keys = [tuple(key) for key in json.loads(str(arrays["keys"]))]
        tally = cls()
        tally.means = BootstrapMeans.from_arrays(keys, arrays["sums"], int(arrays["num_clips"]))
        for name, values in arrays.items():
            kind, _, key = name.partition("/")
            if kind == "features":
                column, candidate = json.loads(key)
                tally._features[column, candidate] = FeatureStats.from_sums(values)
            elif kind == "codes":
                tally._codes[key] = values
        return tally

    def columns(self) -> dict[str, dict[str, dict[str, Interval]]]:
        """Column -> candidate -> metric -> mean over clips."""
        columns: dict[str, dict[str, dict[str, Interval]]] = {}
        for key in self.means.keys:
            if key[0] != "frame":
                column, name, metric = key
                columns.setdefault(column, {}).setdefault(name, {})[metric] = self.means.interval(key)
        return columns

    def curves(self) -> dict[str, dict[str, dict[int, Interval]]]:
        """Candidate -> metric -> frame -> mean over clips."""
        curves: dict[str, dict[str, dict[int, Interval]]] = {}
        for key in self.means.keys:
            if key[0] == "frame":
                _, name, metric, frame = key
                curves.setdefault(name, {}).setdefault(metric, {})[frame] = self.means.interval(key)
        return curves

    def code_counts(self, book: str, size: int) -> NDArray[np.int64]:
        """How often each of ``size`` codes occurred."""
        counts = self._codes.get(book, np.zeros(0, np.int64))
        return np.pad(counts, (0, max(0, size - len(counts))))

    def fvd(self) -> dict[str, dict[str, float]]:
        """Column -> candidate -> FVD over all its samples. Empty without I3D."""
        distances: dict[str, dict[str, float]] = {}
        for (column, name), generated in self._features.items():
            if name != TRUTH:
                distances.setdefault(column, {})[name] = frechet_distance(self._features[column, TRUTH], generated)
        return distances
