"""The table of metrics, and those of pixels: MSE, PSNR, SSIM.

Reports, curves, validation and prediction read the table; another metric is one row. Frames are float in [0, 1] with
any leading dimensions, ``(..., C, H, W)``; they broadcast. A function gives one number a frame, ``(...)``, in float32.
Other ranges (8-bit, signed, 0..255) are refused: a PSNR or an SSIM of them would look like a score and be none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ivideogpt.pixel_range import check_range

PSNR_EPSILON = 1e-8
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # for pixels in [0, 1]


@dataclass(frozen=True)
class Metric:
    """One row."""

    name: str
    label: str  # the heading of a column
    less_is_better: bool
    decimals: int
    function: Callable[[Tensor, Tensor], Tensor] | None = None  # truth, frames -> scores; None: it needs more
    unit: str = ""
    scores_whole_frames: bool = True  # whether it is a score of every whole frame, and so a metric of validations
    in_curves: bool = True  # whether reports plot it over the frames of a clip

    @property
    def heading(self) -> str:
        return f"{self.label} {'↓' if self.less_is_better else '↑'}"

    @property
    def title(self) -> str:
        better = "less" if self.less_is_better else "more"
        return f"{', '.join(filter(None, (self.label, self.unit)))} ({better} is better)"


def frame_mse(truth: Tensor, prediction: Tensor) -> Tensor:
    """Return the mean squared error of each frame."""
    check_frames(truth, prediction)
    return mse_of(truth, prediction)


def frame_psnr(truth: Tensor, prediction: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each frame in dB. The epsilon bounds it at 80 for equal frames."""
    return psnr_of(frame_mse(truth, prediction))


def frame_ssim(truth: Tensor, prediction: Tensor) -> Tensor:
    """Return the structural similarity of each frame, averaged over channels and places."""
    check_frames(truth, prediction)
    return ssim_of(truth, prediction)


def check_frames(truth: Tensor, prediction: Tensor) -> None:
    check_range(truth, "the true frames")
    check_range(prediction, "the frames to be scored")


def mse_of(truth: Tensor, prediction: Tensor) -> Tensor:
    return (truth.float() - prediction.float()).square().mean(dim=(-3, -2, -1))


def psnr_of(mse: Tensor) -> Tensor:
    return -10 * torch.log10(mse + PSNR_EPSILON)


def ssim_of(truth: Tensor, prediction: Tensor) -> Tensor:
    """Average over channels under a Gaussian window that stays inside the frame."""
    truth, prediction = torch.broadcast_tensors(truth.float(), prediction.float())
    leading, (height, width) = truth.shape[:-3], truth.shape[-2:]
    x, y = (frames.reshape(-1, 1, height, width) for frames in (truth, prediction))
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _blur(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    variance_x, variance_y = mean_xx - mean_x**2, mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    contrast = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return (luminance * contrast).reshape(*leading, -1).mean(dim=-1)


def _blur(images: Tensor) -> Tensor:
    """Blur images (n, 1, H, W) to (n, 1, H - 10, W - 10), one axis after the other."""
    offsets = torch.arange(SSIM_WINDOW, dtype=images.dtype, device=images.device) - SSIM_WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    window = (window / window.sum()).reshape(1, 1, -1, 1)
    return functional.conv2d(functional.conv2d(images, window), window.mT)


METRICS: dict[str, Metric] = {}  # by name, in the order of a report's columns


def register(metric: Metric) -> None:
    METRICS[metric.name] = metric


register(Metric("psnr", "PSNR", False, 2, frame_psnr, unit="dB"))
register(Metric("ssim", "SSIM", False, 4, frame_ssim))
register(Metric("lpips", "LPIPS", True, 4))  # computed by a network
register(Metric("mse", "MSE", True, 5, in_curves=False))  # PSNR is computed from it
register(Metric("moving_psnr", "PSNR, moving pixels", False, 2, unit="dB", scores_whole_frames=False))
register(Metric("fvd", "FVD", True, 1, scores_whole_frames=False, in_curves=False))  # computed over all clips at once
