"""Reduce the scores of all frames and samples to a few numbers per clip. Knows scores by name; knows no pixels.

Shapes: N samples, T frames of a clip, t context frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Scores = Mapping[str, "Tensor"]  # metric -> (N, T)

PAPER_METRICS = ("mse", "psnr", "ssim", "lpips")


def best_by_metric(scores: Scores) -> dict[str, float]:
    """Average over frames, and take each metric's own best sample; no single sample need be as good."""
    from ivideogpt.metrics.frame_metrics import best_of_samples  # here, as commands read PROTOCOLS for --help

    return {name: float(best_of_samples(name, values.nanmean(dim=1)[None])) for name, values in scores.items()}


def mean_of_samples(scores: Scores) -> dict[str, float]:
    """Average over frames and samples: the expectation for one sample."""
    return {name: float(values.nanmean()) for name, values in scores.items()}


def best_sample(scores: Scores) -> dict[str, float]:
    """Average over the frames of one sample, the one with the least squared error, for all metrics."""
    best = int(scores["mse"].mean(dim=1).argmin())
    return {name: float(values[best].nanmean()) for name, values in scores.items()}


@dataclass(frozen=True)
class Column:
    """One summary of a clip."""

    title: str  # heading in tables
    span: Literal["all", "future", "late"]  # "all": with the reconstructed context; "late": second half of the future
    reduce: Callable[[Scores], dict[str, float]]  # reduces the scores of these frames, by metric
    takes_best: bool = False  # whether the truth selects the best sample, so that more samples score better

    def __call__(self, scores: Scores, num_context: int) -> dict[str, float]:
        num_frames = scores["mse"].shape[1]
        first = {"all": 0, "future": num_context, "late": num_frames - (num_frames - num_context) // 2}[self.span]
        metrics = PAPER_METRICS if self.span == "all" else tuple(scores)
        return self.reduce({name: scores[name][:, first:] for name in metrics if name in scores})


COLUMNS = {
    "paper": Column("All frames, each metric's best sample", "all", best_by_metric, takes_best=True),
    "future": Column("Predicted frames, mean of samples", "future", mean_of_samples),
    "late": Column("Later half of the predicted frames, mean of samples", "late", mean_of_samples),
    "future_best": Column("Predicted frames, the best sample", "future", best_sample, takes_best=True),
}
PROTOCOLS = {"paper": ("paper",), "future": ("future", "late", "future_best"), "both": tuple(COLUMNS)}
