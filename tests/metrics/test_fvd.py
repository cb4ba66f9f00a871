"""FVD: the distance is the published one, and a wrong network is named."""

import numpy as np
import pytest
import torch
from torch import nn

from ivideogpt.errors import UserError
from ivideogpt.metrics.fvd import I3D, FeatureStats, frechet_distance
from ivideogpt.utils.video_metric import Evaluator
from tests.parity.formulas import golden


def stats_of(*parts, **options) -> FeatureStats:
    stats = FeatureStats(capture_mean_cov=True, **options)
    for part in parts:
        stats.append(part)
    return stats


@pytest.fixture
def features():
    rng = np.random.RandomState(golden()["parts"]["frechet"]["seed"])
    real, generated = rng.standard_normal((40, 8)), 1.3 * rng.standard_normal((50, 8)) + 0.2
    return real.astype(np.float32), generated.astype(np.float32)


def test_number_of_the_released_implementation(features):
    """Population covariance and the trace of a matrix root: published FVDs differ otherwise."""
    expected = golden()["parts"]["frechet"]["fvd"]
    assert frechet_distance(*map(stats_of, features)) == pytest.approx(expected, abs=1e-6)


def test_parts_add_up(features):
    whole, parts = stats_of(features[0]), stats_of(features[0][:7], features[0][7:30], features[0][30:])
    assert parts.num_items == whole.num_items == 40
    for one, other in zip(whole.get_mean_cov(), parts.get_mean_cov(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
    assert frechet_distance(whole, parts) == pytest.approx(0, abs=1e-6)


def test_limits_and_what_was_not_kept(features):
    stats = FeatureStats(capture_all=True, max_items=10)
    stats.append_torch(torch.from_numpy(features[0][:7]))
    stats.append(features[0][7:])
    assert stats.num_items == 10
    np.testing.assert_array_equal(stats.get_all(), features[0][:10])
    with pytest.raises(UserError, match="capture_mean_cov"):
        stats.get_mean_cov()


class StandIn(nn.Module):
    """Called as the published network is; its features are channel means of 0..255 pixels."""

    def forward(self, videos: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert all((rescale, resize, return_features))
        return videos.mean(dim=(2, 3, 4))


class NoFeatures(StandIn):
    def forward(self, videos: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        return videos


def test_the_network_sees_channels_first_and_pixels_to_255(tmp_path):
    torch.jit.script(StandIn()).save(tmp_path / "i3d.pt")
    videos = torch.rand(2, 5, 3, 8, 8)
    features = I3D(tmp_path / "i3d.pt")(videos)
    torch.testing.assert_close(features, 255 * videos.mean(dim=(1, 3, 4)))


@pytest.mark.parametrize("change", [lambda x: (255 * x).byte(), lambda x: 2 * x - 1, lambda x: 255 * x])
def test_videos_of_another_range_are_refused(change, tmp_path):
    """Clamped to [0, 1] in silence, 0..255 videos are white and signed ones half black: the FVD means nothing."""
    torch.jit.script(StandIn()).save(tmp_path / "i3d.pt")
    evaluator = Evaluator(tmp_path / "i3d.pt", lpips_path="nowhere")
    with pytest.raises(UserError, match=r"videos for FVD .*expected floats in \[0, 1\]"):
        evaluator.features(change(torch.rand(2, 5, 3, 8, 8)))


def test_the_released_name_of_the_network_takes_pixels_to_255(tmp_path):
    """Scripts that call ``evaluator.i3d_model`` themselves scale the pixels themselves."""
    torch.jit.script(StandIn()).save(tmp_path / "i3d.pt")
    evaluator, videos = Evaluator(tmp_path / "i3d.pt", lpips_path="nowhere"), torch.rand(2, 5, 3, 8, 8)
    features = evaluator.i3d_model(255 * videos.transpose(1, 2), rescale=True, resize=True, return_features=True)
    torch.testing.assert_close(features, evaluator.features(videos))
    with pytest.raises(UserError, match=r"expected floats in \[0, 255\]"):
        evaluator.i3d_model(2 * videos.transpose(1, 2) - 1)
    assert Evaluator(lpips_path="nowhere").i3d_model is None


def test_wrong_networks_are_named(tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(UserError, match=r"text\.pt: no readable torchscript"):
        I3D(tmp_path / "text.pt")
    torch.jit.script(NoFeatures()).save(tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt is not the I3D"):
        I3D(tmp_path / "other.pt")(torch.rand(2, 5, 3, 8, 8))
