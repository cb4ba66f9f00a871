"""Names that users of the released code call and that this code does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ivideogpt.errors import UserError
from ivideogpt.metrics.frame_metrics import FrameScorer, best_of_samples, find_lpips
from ivideogpt.metrics.fvd import I3D, FeatureStats, frechet_distance
from ivideogpt.paths import LPIPS_FOLDER

compute_fvd = frechet_distance


class Evaluator(nn.Module):
    """The published protocol for the clips of one call: means over all frames, each metric's best of N samples.

    Args:
        i3d_path: network for :meth:`features`; without it there is no FVD.
        max_batchsize: frames that LPIPS, and clips that I3D is given at a time.
        lpips_path: folder of its weights; without them LPIPS is NaN, and the log says what is missing.
    """

    def __init__(
        self,
        i3d_path: str | Path | None = None,
        max_batchsize: int | None = None,
        lpips_path: str | Path = LPIPS_FOLDER,
    ) -> None:
        super().__init__()
        self.max_batchsize = max_batchsize
        self.lpips = find_lpips(lpips_path)
        self.i3d = None if i3d_path is None else I3D(Path(i3d_path))

    def forward(self, truth: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Score ``prediction`` (N B, T, 3, H, W), sample by sample, against ``truth`` (B, T, 3, H, W)."""
        if truth.ndim != 5 or prediction.shape[1:] != truth.shape[1:] or len(prediction) % len(truth):
            raise UserError(
                f"predictions have shape {tuple(prediction.shape)}, expected (N B, T, 3, H, W), sample by sample, for "
                f"true clips of shape {tuple(truth.shape)}"
            )
        samples = prediction.unflatten(0, (-1, len(truth))).transpose(0, 1)
        scores = FrameScorer(self.lpips, self.max_batchsize)(truth, samples)
        means = {name: best_of_samples(name, frame_scores.mean(dim=-1)).mean() for name, frame_scores in scores.items()}
        lpips = means.get("lpips", torch.full_like(means["mse"], torch.nan))
        return means["mse"], means["psnr"], means["ssim"], lpips

    @property
    def i3d_model(self) -> Callable[..., Tensor] | None:
        """The published network itself, for pixels (n, 3, T, H, W) in 0..255; None without i3d_path."""
        return None if self.i3d is None else self.i3d.network

    def features(self, videos: Tensor) -> Tensor:
        """Compute I3D features (n, d) of videos (n, T, 3, H, W) in [0, 1], for :class:`FeatureStats`."""
        if self.i3d is None:
            raise UserError("no I3D network: make the Evaluator with i3d_path")
        return self.i3d.in_parts(videos, self.max_batchsize)

    def compute_fvd(self, real_stats: FeatureStats, generated_stats: FeatureStats) -> float:
        return compute_fvd(real_stats, generated_stats)
