"""A metric that is registered from outside the package shows up wherever scores do."""

import json

import torch

from ivideogpt.commands import evaluate
from ivideogpt.evaluation.video_prediction import score_frames
from ivideogpt.metrics.frame_metrics import FrameScorer
from ivideogpt.metrics.table import METRICS, Metric, register
from tests.evaluation.conftest import episodes  # noqa: F401


def brightness_error(truth: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    return (truth.mean(dim=(-3, -2, -1)) - frames.mean(dim=(-3, -2, -1))).abs()


def test_a_toy_metric_is_in_the_report(tiny_world_model, episodes, tmp_path):  # noqa: F811
    """Labels, decimals and directions stood in four places, one of which a new metric always missed."""
    try:
        register(Metric("brightness", "Brightness error", less_is_better=True, decimals=3, function=brightness_error))
        truth, samples = torch.rand(1, 4, 3, 16, 16), torch.rand(1, 2, 4, 3, 16, 16)
        scores = FrameScorer()(truth, samples)["brightness"]
        torch.testing.assert_close(scores, brightness_error(truth[:, None], samples))
        assert "brightness" in score_frames(truth, samples[:, 0])
        flags = ["--pretrained_model_name_or_path", str(tiny_world_model), "--dataset_path", str(episodes)]
        evaluate.main([*flags, "--split", "all", "--num_clips", "2", "--output_path", str(tmp_path)])
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["scores"]["future"]["prediction"]["brightness"]["mean"] > 0
        assert "brightness" in report["per_frame"]["prediction"]
        assert "Brightness error ↓" in (tmp_path / "report.md").read_text()
    finally:
        METRICS.pop("brightness", None)
