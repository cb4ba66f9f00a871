"""The table of metrics. Reports, curves, validation and prediction read it; another metric is one row.

Frames are float in [0, 1], ``(..., C, H, W)``; a function gives one number a frame, ``(...)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ivideogpt.metrics.pixels import frame_psnr, frame_ssim


@dataclass(frozen=True)
class Metric:
    """One row.

    Attributes:
        label: the heading of a column.
        function: computes scores from true and predicted frames, which broadcast; None if it needs more than those.
        scores_whole_frames: whether it is a score of every whole frame, and so a metric of validations.
        in_curves: whether reports plot it over the frames of a clip.
    """

    name: str
    label: str
    less_is_better: bool
    decimals: int
    function: Callable[[Tensor, Tensor], Tensor] | None = None
    unit: str = ""
    scores_whole_frames: bool = True
    in_curves: bool = True

    @property
    def heading(self) -> str:
        return f"{self.label} {'↓' if self.less_is_better else '↑'}"

    @property
    def title(self) -> str:
        better = "less" if self.less_is_better else "more"
        return f"{', '.join(filter(None, (self.label, self.unit)))} ({better} is better)"


METRICS: dict[str, Metric] = {}  # by name, in the order of a report's columns


def register(metric: Metric) -> None:
    METRICS[metric.name] = metric


register(Metric("psnr", "PSNR", False, 2, frame_psnr, unit="dB"))
register(Metric("ssim", "SSIM", False, 4, frame_ssim))
register(Metric("lpips", "LPIPS", True, 4))  # computed by a network
register(Metric("mse", "MSE", True, 5, in_curves=False))  # PSNR is computed from it
register(Metric("moving_psnr", "PSNR, moving pixels", False, 2, unit="dB", scores_whole_frames=False))
register(Metric("fvd", "FVD", True, 1, scores_whole_frames=False, in_curves=False))  # computed over all clips at once
