"""The published protocol: which frames count, and which sample is the best."""

import torch

from ivideogpt.evaluation.clip_scorer import ClipScorer
from ivideogpt.utils.video_metric import frame_mse, frame_psnr, frame_ssim

CONTEXT = 2


def test_each_metric_takes_its_own_best_sample_over_all_frames():
    truth = torch.rand(2, 5, 3, 16, 16)
    close_future = truth.clone()
    close_future[:, :CONTEXT] = torch.rand(2, CONTEXT, 3, 16, 16)  # a bad reconstruction counts in all frames
    samples = torch.stack([close_future, (truth + 0.1).clamp(0, 1)], dim=1)
    scores = ClipScorer()(truth, samples, CONTEXT)
    per_frame = {name: metric(truth[:, None], samples) for name, metric in (("mse", frame_mse), ("psnr", frame_psnr))}
    assert scores["mse"] == per_frame["mse"].mean(-1).amin(1).mean()
    assert scores["psnr"] == per_frame["psnr"].mean(-1).amax(1).mean()
    assert scores["future_mse"] < 1e-8
    assert scores["mse"] > 1e-3


def test_copying_is_scored_on_future_frames():
    truth = torch.rand(1, 4, 3, 16, 16)
    scores = ClipScorer()(truth, truth[:, None], CONTEXT)
    copy = truth[:, CONTEXT - 1 : CONTEXT].expand(-1, 2, -1, -1, -1)
    torch.testing.assert_close(scores["copy_ssim"], frame_ssim(truth[:, CONTEXT:], copy).mean())


def test_networks_see_no_more_rows_than_allowed_and_their_scales():
    """LPIPS wants [-1, 1]; chunks must not change a score."""
    truth, samples = torch.rand(2, 3, 3, 16, 16), torch.rand(2, 2, 3, 3, 16, 16)
    seen: list[int] = []

    def lpips(frames, others):
        assert frames.min() < 0
        seen.append(len(frames))
        return (frames - others).abs().mean(dim=(1, 2, 3))

    def i3d(videos):
        seen.append(len(videos))
        return videos.mean(dim=(1, 3, 4))

    scorer = ClipScorer(lpips, i3d, max_rows=5)
    scores = scorer(truth, samples, CONTEXT)
    assert max(seen) == 5
    expected = 2 * (truth[:, None] - samples).abs().mean(dim=(2, 3, 4, 5))
    torch.testing.assert_close(scores["lpips"], expected.amin(1).mean())
    assert (scorer.real.num_items, scorer.generated.num_items) == (2, 4)
