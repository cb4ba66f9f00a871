"""From scores of every frame of every sample to a few numbers a clip. Knows scores by name; knows no pixels.

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
    """Means over frames; each metric takes the sample that is best by itself: no single sample need be as good."""
    from ivideogpt.metrics.frame_metrics import best_of_samples  # here, as commands read PROTOCOLS for --help

    return {name: float(best_of_samples(name, of.nanmean(dim=1)[None])) for name, of in scores.items()}


def mean_of_samples(scores: Scores) -> dict[str, float]:
    """Means over frames and samples: what to expect of one sample."""
    return {name: float(of.nanmean()) for name, of in scores.items()}


def best_sample(scores: Scores) -> dict[str, float]:
    """Means over the frames of one sample, the same for all metrics: the one with the least squared error."""
    best = int(scores["mse"].mean(dim=1).argmin())
    return {name: float(of[best].nanmean()) for name, of in scores.items()}


@dataclass(frozen=True)
class Column:
    """One way to sum a clip up.

    Attributes:
        title: for tables.
        span: "all" frames, the reconstructed context included, the "future" ones, or the "late" half of these.
        reduce: over the scores of the frames that count.
        takes_best: of the samples, by the truth: the more samples, the better it looks.
    """

    title: str
    span: Literal["all", "future", "late"]
    reduce: Callable[[Scores], dict[str, float]]
    takes_best: bool = False

    def first_frame(self, num_context: int, num_frames: int) -> int:
        return {"all": 0, "future": num_context, "late": num_frames - (num_frames - num_context) // 2}[self.span]

    def __call__(self, scores: Scores, num_context: int) -> dict[str, float]:
        first = self.first_frame(num_context, scores["mse"].shape[1])
        metrics = PAPER_METRICS if self.span == "all" else tuple(scores)
        return self.reduce({name: scores[name][:, first:] for name in metrics if name in scores})


COLUMNS = {
    "paper": Column("All frames, each metric's best sample", "all", best_by_metric, takes_best=True),
    "future": Column("Predicted frames, mean of samples", "future", mean_of_samples),
    "late": Column("Later half of the predicted frames, mean of samples", "late", mean_of_samples),
    "future_best": Column("Predicted frames, the best sample", "future", best_sample, takes_best=True),
}
PROTOCOLS = {
    "paper": ("paper",),
    "future": ("future", "late", "future_best"),
    "both": ("paper", "future", "late", "future_best"),
}
