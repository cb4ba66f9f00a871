import math

import pytest
import torch
from torch import Tensor

from ivideogpt.errors import UserError
from ivideogpt.metrics.frame_metrics import FrameScorer, frame_mse, frame_psnr, frame_ssim
from ivideogpt.utils.video_metric import Evaluator
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


def test_each_metric_takes_its_own_best_sample():
    """The published scores: over all frames, and no single sample need have them all."""
    truth = clip(2, 3, 16, 16).clamp(0, 1)
    samples = torch.stack([(truth + 0.1 * torch.rand_like(truth)).clamp(0, 1), (truth * 0.9).clamp(0, 1)])
    scores = [metric(truth, samples).mean(dim=-1) for metric in METRICS.values()]  # (N, B)
    expected = [scores[0].amin(0).mean(), scores[1].amax(0).mean(), scores[2].amax(0).mean()]
    *found, lpips = Evaluator(lpips_path="nowhere")(truth, samples.flatten(0, 1))
    torch.testing.assert_close(found, expected)
    assert lpips.isnan()


def test_scores_of_chunks_are_those_of_the_whole():
    truth, samples = torch.rand(2, 3, 3, 16, 16), torch.rand(2, 4, 3, 3, 16, 16)
    whole, parts = FrameScorer()(truth, samples), FrameScorer(max_rows=4)(truth, samples)
    for name, metric in METRICS.items():
        torch.testing.assert_close(whole[name], metric(truth[:, None], samples))
        torch.testing.assert_close(parts[name], whole[name])


def test_lpips_sees_minus_one_to_one_and_the_truth_once_per_chunk():
    """Features of the truth serve all samples: half of the work."""
    seen: list[Tensor] = []

    class Distance:
        def features(self, frames):
            seen.append(frames)
            return [frames]

        def distance(self, features, others):
            return (features[0] - others[0]).abs().mean(dim=(1, 2, 3))

    truth, samples = torch.rand(2, 3, 3, 16, 16), torch.rand(2, 4, 3, 3, 16, 16)
    scores = FrameScorer(Distance(), max_rows=4)(truth, samples)
    torch.testing.assert_close(scores["lpips"], 2 * (truth[:, None] - samples).abs().mean(dim=(3, 4, 5)))
    assert [len(frames) for frames in seen] == [4] * 5 + [2] * 5
    torch.testing.assert_close(torch.cat([seen[0], seen[5]]), 2 * truth.flatten(0, 1) - 1)


def test_frames_that_are_no_numbers_are_refused():
    """NaN would make the mean of all clips NaN, or count as the best sample."""
    truth, samples = torch.rand(1, 2, 3, 16, 16), torch.rand(1, 1, 2, 3, 16, 16)
    samples[0, 0, 1, 0, 3, 3] = torch.nan
    with pytest.raises(UserError, match="the frames to be scored hold NaN"):
        FrameScorer()(truth, samples)
    with pytest.raises(UserError, match="the true frames hold NaN"):
        FrameScorer()(samples[:, 0], samples)


RANGES = {
    "8-bit": (lambda frames: (255 * frames).byte(), "uint8, expected floats in"),
    "signed": (lambda frames: 2 * frames - 1, r"\(float32\) lie in \[-0.9\d*, 0.9\d*\], expected floats in \[0, 1\]"),
    "0..255": (lambda frames: 255 * frames, r"\(float32\) lie in \[.*, 25\d.\d*\], expected floats in \[0, 1\]"),
}


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("side", ["both", "truth", "prediction"])
def test_frames_of_another_range_are_refused(kind, side):
    """A PSNR of -28 dB or an SSIM for another data range looks like a score and is none."""
    change, message = RANGES[kind]
    frames = torch.rand(2, 3, 3, 16, 16)
    truth, prediction = (change(frames) if side in ("both", name) else frames for name in ("truth", "prediction"))
    for metric in METRICS.values():
        with pytest.raises(UserError, match=message):
            metric(truth, prediction)
    with pytest.raises(UserError, match=message):
        Evaluator(lpips_path="nowhere")(truth, prediction)


def test_predictions_must_go_with_the_truth():
    with pytest.raises(UserError, match="sample by sample"):
        Evaluator(lpips_path="nowhere")(torch.rand(2, 3, 3, 16, 16), torch.rand(3, 3, 3, 16, 16))
    with pytest.raises(UserError, match="make the Evaluator with i3d_path"):
        Evaluator(lpips_path="nowhere").features(torch.rand(2, 3, 3, 16, 16))
