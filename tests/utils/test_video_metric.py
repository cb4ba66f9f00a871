import math

import pytest
import torch

from ivideogpt.utils.video_metric import frame_mse, frame_psnr, frame_ssim
from tests.parity.formulas import assert_close, clip, golden

METRICS = {"mse": frame_mse, "psnr": frame_psnr, "ssim": frame_ssim}


@pytest.mark.parametrize("name", METRICS)
def test_numbers_of_the_released_implementation(name):
    """Published scores can only be compared if window, padding and epsilon are the same."""
    truth, prediction = (clip(2, 4, 64, 64, phase).clamp(0, 1) for phase in (0.0, 0.3))
    assert_close(METRICS[name](truth, prediction).flatten(), golden()["parts"]["frame_metrics"][name])


@pytest.mark.parametrize("name", METRICS)
def test_truth_broadcasts_over_samples(name):
    """One truth scores N samples as if it had been repeated."""
    truth, samples = clip(1, 2, 16, 16), clip(3, 2, 16, 16, 0.2)
    repeated = METRICS[name](truth.expand_as(samples).contiguous(), samples)
    assert repeated.shape == (3, 2)
    torch.testing.assert_close(METRICS[name](truth, samples), repeated)


def test_equal_frames():
    """A perfect prediction has a finite score."""
    frames = clip(1, 1, 16, 16)
    assert frame_psnr(frames, frames).item() == pytest.approx(-10 * math.log10(1e-8))
    assert frame_ssim(frames, frames).item() == pytest.approx(1, abs=1e-5)


def test_half_precision_frames_are_scored_in_float32():
    """bfloat16 differences of nearly equal frames would be noise."""
    truth, prediction = clip(1, 2, 16, 16).bfloat16(), clip(1, 2, 16, 16, 0.01).bfloat16()
    for metric in METRICS.values():
        assert metric(truth, prediction).dtype == torch.float32
        torch.testing.assert_close(metric(truth, prediction), metric(truth.float(), prediction.float()))
