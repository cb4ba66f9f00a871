"""Rows of an evaluation, one per scored clip, and summaries of all rows. Knows no pixels.

Shapes: N samples, T frames of a clip, d features.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.evaluation.bootstrap import BootstrapMeans, Interval
from ivideogpt.evaluation.protocols import COLUMNS
from ivideogpt.files import SETTINGS_FILE, KeptRows, atomic_file
from ivideogpt.metrics.fvd import FeatureStats, frechet_distance

CLIPS_FILE = "clips.jsonl"
FEATURES_FOLDER = "features"  # I3D features, one file per clip, until the report is written

Last = TypeVar("Last", str, int)  # part of a key: a metric or a frame
Key = tuple[str, str, str]  # column, candidate, metric
Summaries = dict[str, dict[str, dict[str, float]]]  # column -> candidate -> metric -> number
Curves = dict[str, dict[str, list[float]]]  # candidate -> metric -> mean over samples of each frame
Features = dict[tuple[str, str], NDArray[np.float32]]  # (column, candidate or "truth") -> (samples, d)

TRUTH = "truth"
PREDICTION = "prediction"
SHUFFLED = "shuffled_actions"


@dataclass(frozen=True)
class ClipRow:
    """Scores and properties of one clip, for any number of samples."""

    number: int  # index of the clip in the list of clips
    summaries: Summaries
    frames_checksum: str = ""  # checksum of the true frames
    curves: Curves = field(default_factory=dict)
    features: Features = field(default_factory=dict)  # I3D features, stored in files beside the rows
    codes: dict[str, list[int]] = field(default_factory=dict)  # token ids of each codebook
    dataset: str = ""
    episode: str = ""

    @classmethod
    def of(
        cls,
        number: int,
        truth: Tensor,
        num_context: int,
        scores: Mapping[str, Mapping[str, Tensor]],
        features: Features,
    ) -> ClipRow:
        """Summarise (N, T) scores by candidate and metric of a clip (T, C, H, W)."""
        num_samples = max(len(metrics["mse"]) for metrics in scores.values())
        summaries: Summaries = {}
        is_one_of_many = SHUFFLED in scores and len(scores[SHUFFLED]["mse"]) < num_samples
        for column, summarise in COLUMNS.items():
            # the best of one random sample is not comparable to the best of several
            comparable = [n for n in scores if not (n == SHUFFLED and is_one_of_many and summarise.takes_best)]
            if num_samples > 1 or column != "future_best":
                summaries[column] = {name: summarise(scores[name], num_context) for name in comparable}
        curves = _each_metric(scores, lambda values: values.mean(dim=0).tolist())
        return cls(number, summaries, frames_checksum(truth), curves, features)

    @property
    def episode_key(self) -> str:
        return f"{self.dataset}/{self.episode}"

    def as_json(self) -> dict[str, Any]:
        """Return the row without features and unmeasured values."""
        scores = {
            column: {
                name: {metric: value for metric, value in metrics.items() if not math.isnan(value)}
                for name, metrics in candidates.items()
            }
            for column, candidates in self.summaries.items()
        }
        curves = _each_metric(self.curves, lambda curve: [None if math.isnan(value) else value for value in curve])
        facts = {"clip": self.number, "frames": self.frames_checksum, "dataset": self.dataset, "episode": self.episode}
        return {**facts, "scores": scores, "curves": curves, "codes": self.codes}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], features: Features | None = None) -> ClipRow:
        """Invert :meth:`as_json`."""
        curves = _each_metric(row["curves"], lambda curve: [math.nan if value is None else value for value in curve])
        origin = row["dataset"], row["episode"]
        return cls(row["clip"], row["scores"], row["frames"], curves, features or {}, row["codes"], *origin)


def by_key(nested: Mapping[str, Mapping[str, Mapping[Last, float]]]) -> dict[tuple[str, str, Last], float]:
    """Return numbers by the three keys that lead to them."""
    return {
        (first, second, third): value
        for first, rows in nested.items()
        for second, row in rows.items()
        for third, value in row.items()
    }


def _each_metric(scores: Mapping[str, Mapping[str, Any]], convert: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
    return {name: {metric: convert(row[metric]) for metric in row} for name, row in scores.items()}


def frames_checksum(frames: Tensor) -> str:
    """Return the checksum of frames in [0, 1] as 8-bit pixels."""
    pixels = (frames.float() * 255).round().clamp(0, 255).byte().cpu().numpy()
    return hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest()


class ClipRows(KeptRows[ClipRow]):
    """Rows in ``folder/clips.jsonl``: the state of an evaluation. Those whose features are wanted and missing are none.

    ``facts`` is everything that affects scores.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], with_features: bool = False) -> None:
        self._with_features = with_features
        super().__init__(folder, ClipRow, facts, CLIPS_FILE)

    def add(self, rows: Sequence[ClipRow]) -> None:
        for row in rows:
            if row.features:
                (self.folder / FEATURES_FOLDER).mkdir(exist_ok=True)
                arrays: dict[str, Any] = {"/".join(key): values for key, values in row.features.items()}
                with atomic_file(self._features_path(row.number)) as file:
                    np.savez(file, **arrays)
        super().add(rows)

    def from_json(self, line: Mapping[str, Any]) -> ClipRow | None:
        features = self._read_features(line["clip"]) if self._with_features else {}
        return None if features is None else ClipRow.from_json(line, features)

    def as_json(self, row: ClipRow) -> dict[str, Any]:
        return row.as_json()

    def finish(self) -> None:
        """Remove what only an unfinished evaluation needs: the same command would score all clips again."""
        shutil.rmtree(self.folder / FEATURES_FOLDER, ignore_errors=True)
        (self.folder / SETTINGS_FILE).unlink(missing_ok=True)

    def _features_path(self, number: int) -> Path:
        return self.folder / FEATURES_FOLDER / f"{number}.npz"

    def _read_features(self, number: int) -> Features | None:
        try:
            with np.load(self._features_path(number), allow_pickle=False) as file:
                keys = (name.split("/", 1) for name in file.files)
                return {(column, name): file[f"{column}/{name}"] for column, name in keys}
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
            return None


class RowSummary:
    """Means over rows with their intervals, code counts and FVD."""

    def __init__(self, rows: Sequence[ClipRow]) -> None:
        self._rows = rows
        episodes = [row.episode_key for row in rows]
        self.means: BootstrapMeans[Key] = BootstrapMeans([by_key(row.summaries) for row in rows], episodes)
        curves = [by_key(_each_metric(row.curves, lambda curve: dict(enumerate(curve)))) for row in rows]
        self._frame_means: BootstrapMeans[tuple[str, str, int]] = BootstrapMeans(curves, episodes)

    @property
    def num_episodes(self) -> int:
        return len({row.episode_key for row in self._rows})

    def columns(self) -> dict[str, dict[str, dict[str, Interval]]]:
        """Return column -> candidate -> metric -> mean over clips."""
        return _nested_intervals(self.means)

    def curves(self) -> dict[str, dict[str, dict[int, Interval]]]:
        """Return candidate -> metric -> frame -> mean over clips."""
        return _nested_intervals(self._frame_means)

    def code_counts(self, book: str, size: int) -> NDArray[np.int64]:
        """Count the occurrences of each of ``size`` codes."""
        return np.bincount([code for row in self._rows for code in row.codes.get(book, ())], minlength=size)

    def fvd(self) -> dict[str, dict[str, float]]:
        """Return column -> candidate -> FVD over all samples; empty without I3D."""
        stats: dict[tuple[str, str], FeatureStats] = {}
        for row in self._rows:
            for key, features in row.features.items():
                stats.setdefault(key, FeatureStats(capture_mean_cov=True)).append(features)
        distances: dict[str, dict[str, float]] = {}
        for (column, name), generated in stats.items():
            if name != TRUTH:
                distances.setdefault(column, {})[name] = frechet_distance(stats[column, TRUTH], generated)
        return distances


def _nested_intervals(means: BootstrapMeans[tuple[str, str, Last]]) -> dict[str, dict[str, dict[Last, Interval]]]:
    """Return the interval of each mean, by the three parts of its key."""
    nested: dict[str, dict[str, dict[Last, Interval]]] = {}
    for key in means.keys:
        first, second, third = key
        nested.setdefault(first, {}).setdefault(second, {})[third] = means.interval(key)
    return nested
