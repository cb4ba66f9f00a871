"""Scores of predicted frames beside the true ones, and the networks that some of them need.

Dimension keys: B clips, N samples of each, T frames, C H W pixels.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch
from torch import Tensor

from ivideogpt.errors import UserError
from ivideogpt.metrics.fvd import I3D
from ivideogpt.metrics.lpips import LINEAR_FILE, LINEAR_MD5, LPIPS, missing_weights
from ivideogpt.metrics.table import METRICS, check_frames, frame_mse, frame_psnr, frame_ssim, mse_of, psnr_of, ssim_of
from ivideogpt.paths import here_or_in_project
from ivideogpt.precision import full_float32

__all__ = ["FrameScorer", "frame_mse", "frame_psnr", "frame_ssim"]

logger = logging.getLogger(__name__)

# Limit of pixels compared at a time: more are no faster; features of LPIPS take 500 bytes each.
PIXELS_AT_ONCE = 64 * 64**2


class FrameScorer:
    """Every metric of every frame of some clips' samples, and LPIPS where there is a network.

    ``max_rows`` frames are compared at a time; by default as many as use the machine well.
    """

    def __init__(self, lpips: LPIPS | None = None, max_rows: int | None = None) -> None:
        self.lpips = lpips
        self.max_rows = max_rows

    @torch.no_grad()
    def __call__(self, truth: Tensor, samples: Tensor) -> dict[str, Tensor]:
        """Score ``samples`` (B, N, T, C, H, W) against ``truth`` (B, T, C, H, W), in [0, 1]: (B, N, T) a metric."""
        check_frames(truth, samples)
        num_samples = samples.shape[1]
        true_frames, frames = truth.flatten(0, 1), samples.transpose(0, 1).flatten(1, 2)  # (B T, ...), (N, B T, ...)
        at_a_time = self.max_rows or max(1, PIXELS_AT_ONCE // true_frames.shape[-2:].numel())
        rows = torch.arange(len(true_frames), device=truth.device).split(at_a_time)
        with full_float32():
            parts = [self._compare(true_frames[some].float(), frames[:, some].float()) for some in rows]
        shape = (num_samples, *truth.shape[:2])
        return {name: torch.cat([part[name] for part in parts], dim=1).view(shape).transpose(0, 1) for name in parts[0]}

    def _compare(self, truth: Tensor, samples: Tensor) -> dict[str, Tensor]:
        """Score frames (N, n, C, H, W) against true frames (n, C, H, W): (N, n) a metric."""
        mse = mse_of(truth, samples)
        scores = {"mse": mse, "psnr": psnr_of(mse), "ssim": torch.stack([ssim_of(truth, frames) for frames in samples])}
        if self.lpips is not None:
            features = self.lpips.features(truth * 2 - 1)
            distances = [self.lpips.distance(features, self.lpips.features(frames * 2 - 1)) for frames in samples]
            scores["lpips"] = torch.stack(distances)
        added = {name: metric.function for name, metric in METRICS.items() if metric.function and name not in scores}
        return scores | {name: function(truth, samples) for name, function in added.items()}


def find_lpips(folder: str | Path, device: torch.device | str = "cpu") -> LPIPS | None:
    """Load LPIPS from this folder, here or in the project; None, and a log line, where its weights are missing."""
    if missing := missing_weights(here_or_in_project(folder)):
        logger.warning("scores WITHOUT LPIPS. %s", missing)
        return None
    return load_lpips(folder, device, "or do without")


def load_lpips(folder: str | Path, device: torch.device | str, instead: str) -> LPIPS:
    """Load LPIPS from this folder, here or in the project, for a loss that has a weight.

    A UserError names the files that are missing. ``instead`` ends it, e.g. "or train without the perceptual loss".
    """
    folder = here_or_in_project(folder)
    if missing := missing_weights(folder):
        raise UserError(f"{missing}, {instead}")
    md5 = hashlib.md5((folder / LINEAR_FILE).read_bytes(), usedforsecurity=False).hexdigest()
    if md5 != LINEAR_MD5:
        logger.warning("%s is not the published file: its md5 is %s, not %s", folder / LINEAR_FILE, md5, LINEAR_MD5)
    return LPIPS(folder).to(device)


def find_i3d(path: str | Path, device: torch.device | str = "cpu") -> I3D | None:
    """Load I3D from this file, here or in the project; None, and a line in the log, where it is missing."""
    path = here_or_in_project(path)
    if not path.is_file():
        logger.warning("scores WITHOUT FVD. I3D missing: put the published i3d_torchscript.pt at %s", path)
        return None
    return I3D(path, device)


def best_of_samples(metric: str, scores: Tensor) -> Tensor:
    """Choose each clip's best sample by a metric: scores (B, N) to (B,)."""
    return scores.amin(dim=1) if METRICS[metric].less_is_better else scores.amax(dim=1)
