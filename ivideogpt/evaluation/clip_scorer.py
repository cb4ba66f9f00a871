"""Scores of sampled clips in the published protocol, beside what they must beat. Knows clips; knows no model.

Dimension keys: B clips, N samples of each, T = t + F frames, t context frames, C H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.evaluation import video_prediction
from ivideogpt.evaluation.video_prediction import copy_last_frame
from ivideogpt.lpips import LPIPS
from ivideogpt.utils.frechet import I3D, FeatureStats
from ivideogpt.utils.video_metric import frame_mse

METRICS = {"mse": frame_mse, **video_prediction.METRICS}
LESS_IS_BETTER = ("mse", "lpips")


class ClipScorer:
    """All T frames are scored, the reconstructed context included: means over frames, the best of N samples.

    Each metric takes the sample that is best by itself (iVideoGPT, appendix on evaluation). Metrics that start with
    ``future_`` look at predicted frames alone, ``copy_`` at the last context frame in their place.

    Args:
        lpips: left out if not given.
        i3d: features for FVD, which is over all samples; left out if not given.
        max_rows: clips that these two networks are given at a time.
    """

    def __init__(self, lpips: LPIPS | None = None, i3d: I3D | None = None, max_rows: int | None = None) -> None:
        self.lpips = lpips
        self.i3d = i3d
        self.max_rows = max_rows
        self.real = FeatureStats(capture_mean_cov=True)
        self.generated = FeatureStats(capture_mean_cov=True)

    def __call__(self, truth: Tensor, samples: Tensor, num_context: int) -> dict[str, Tensor]:
        """Means over a batch's clips: ``truth`` (B, T, C, H, W) and ``samples`` (B, N, T, C, H, W) are in [0, 1]."""
        truth, samples = truth.float(), samples.float()
        scores = {name: metric(truth[:, None], samples) for name, metric in METRICS.items()}
        if self.lpips is not None:
            scores["lpips"] = self._lpips(truth, samples)
        copy = copy_last_frame(truth, num_context)
        if self.i3d is not None:
            self.real.append_torch(self._features(truth))
            self.generated.append_torch(self._features(samples.flatten(0, 1)))
        return {
            **{name: _best(name, of.mean(dim=-1)).mean() for name, of in scores.items()},
            **{f"future_{name}": _best(name, of[..., num_context:].mean(dim=-1)).mean() for name, of in scores.items()},
            **{f"copy_{name}": metric(truth[:, num_context:], copy).mean() for name, metric in METRICS.items()},
        }

    def _lpips(self, truth: Tensor, samples: Tensor) -> Tensor:
        """(B, N, T)."""
        assert self.lpips is not None
        pairs = [frames.flatten(0, 2) * 2 - 1 for frames in (truth[:, None].expand_as(samples), samples)]
        rows = self.max_rows or len(pairs[0])
        parts = zip(*(frames.split(rows) for frames in pairs), strict=True)
        return torch.cat([self.lpips(*part) for part in parts]).view(samples.shape[:3])

    def _features(self, videos: Tensor) -> Tensor:
        assert self.i3d is not None
        return torch.cat([self.i3d(part) for part in videos.split(self.max_rows or len(videos))])


def _best(name: str, scores: Tensor) -> Tensor:
    """(B, N) to (B,)."""
    return scores.amin(dim=1) if name in LESS_IS_BETTER else scores.amax(dim=1)
