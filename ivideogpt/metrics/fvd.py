"""Fréchet distance of two sets of features, and the features that make it the FVD (Unterthiner et al. 2018)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.errors import UserError
from ivideogpt.pixel_range import EIGHT_BIT, check_range
from ivideogpt.precision import full_float32

VIDEOS_AT_ONCE = 16


class FeatureStats:
    """Mean and covariance of feature vectors, from sums alone: memory does not grow with their number.

    Args:
        capture_all: keep every vector, for :meth:`get_all`.
        capture_mean_cov: keep what :meth:`get_mean_cov` needs.
        max_items: ignore vectors beyond this number.
    """

    def __init__(self, capture_all: bool = False, capture_mean_cov: bool = False, max_items: int | None = None) -> None:
        self.capture_all = capture_all
        self.capture_mean_cov = capture_mean_cov
        self.max_items = max_items
        self.num_items = 0
        self._all: list[NDArray[np.float32]] = []
        self._sum: NDArray[np.float64] | None = None
        self._products: NDArray[np.float64] | None = None

    def append(self, features: NDArray[np.floating]) -> None:
        """Add vectors (n, d)."""
        features = np.asarray(features, np.float32)
        if self.max_items is not None:
            features = features[: self.max_items - self.num_items]
        self.num_items += len(features)
        if self.capture_all:
            self._all.append(features)
        if self.capture_mean_cov and len(features):
            exact = features.astype(np.float64)
            sums, products = exact.sum(axis=0), exact.T @ exact
            self._sum = sums if self._sum is None else self._sum + sums
            self._products = products if self._products is None else self._products + products

    def append_torch(self, features: Tensor) -> None:
        self.append(features.detach().float().cpu().numpy())

    def get_all(self) -> NDArray[np.float32]:
        if not self.capture_all:
            raise UserError("these statistics did not keep their vectors: make them with capture_all=True")
        return np.concatenate(self._all)

    def get_mean_cov(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean (d,) and the population covariance (d, d)."""
        if self._sum is None or self._products is None:
            raise UserError("no mean and covariance: no vectors were appended, or capture_mean_cov was not set")
        mean = self._sum / self.num_items
        return mean, self._products / self.num_items - np.outer(mean, mean)


def frechet_distance(real: FeatureStats, generated: FeatureStats) -> float:
    """Return |mean difference|^2 + tr(C + D - 2 (C D)^(1/2)) of two sets with covariances C and D."""
    (mean_r, cov_r), (mean_g, cov_g) = real.get_mean_cov(), generated.get_mean_cov()
    values, vectors = np.linalg.eigh(cov_r)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    # C D and C^(1/2) D C^(1/2) have the same eigenvalues, and those of the latter are those of a symmetric matrix
    eigenvalues = np.linalg.eigvalsh(root @ cov_g @ root).clip(min=0)
    difference = mean_r - mean_g
    return float(difference @ difference + np.trace(cov_r) + np.trace(cov_g) - 2 * np.sqrt(eigenvalues).sum())


class I3D:
    """The published I3D network, a torchscript file, as features of videos; UserError for any other file."""

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        self.path = path
        try:
            self._network = torch.jit.load(path, map_location=device).eval()
            self._device = torch.device(device)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{path}: no readable torchscript file for FVD ({str(error).splitlines()[0]})") from error

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Tensor:
        """Compute features (B, d) of videos (B, T, 3, H, W) in [0, 1]; UserError if the network cannot take them."""
        check_range(videos, "videos for FVD")
        try:
            features = self.network((videos.float().clamp(0, 1) * 255).transpose(1, 2))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{self.path} does not take videos of {videos.shape[1]} frames: {reason}") from error
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(videos):
            raise UserError(f"{self.path} is not the I3D of FVD: it gives no (videos, features) matrix")
        return features

    def network(
        self, pixels: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True
    ) -> Tensor:
        """Call the published network as it is: ``pixels`` (B, 3, T, H, W), in 0..255 or it is a UserError."""
        check_range(pixels, "pixels for the I3D network", EIGHT_BIT)
        if pixels.device != self._device:
            self._network, self._device = self._network.to(pixels.device), pixels.device
        with full_float32():
            return self._network(pixels, rescale=rescale, resize=resize, return_features=return_features)

    def in_parts(self, videos: Tensor, max_rows: int | None) -> Tensor:
        """Compute features of ``max_rows`` videos at a time."""
        return torch.cat([self(part) for part in videos.split(max_rows or VIDEOS_AT_ONCE)])
