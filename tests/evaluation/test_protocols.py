"""Which frames count, and which sample."""

import pytest
import torch

from ivideogpt.evaluation.protocols import COLUMNS, best_by_metric, best_sample, mean_of_samples
from ivideogpt.evaluation.rows import PREDICTION, SHUFFLED, ClipRow

# two samples of three frames, one of which is context; each sample is the best by one metric
SCORES = {
    "mse": torch.tensor([[1.0, 2.0, 4.0], [0.0, 3.0, 6.0]]),
    "psnr": torch.tensor([[9.0, 10.0, 10.0], [30.0, 11.0, 12.0]]),
}


def test_each_metric_takes_its_own_best_sample_over_all_frames():
    assert best_by_metric(SCORES) == pytest.approx({"mse": 7 / 3, "psnr": 53 / 3})
    assert COLUMNS["paper"](SCORES, num_context=1) == best_by_metric(SCORES)


def test_one_sample_is_the_best_for_all_metrics():
    """Best of N by each metric is a score that no sample has."""
    future = {name: values[:, 1:] for name, values in SCORES.items()}
    assert best_sample(future) == {"mse": 3.0, "psnr": 10.0}
    assert COLUMNS["future_best"](SCORES, num_context=1) == {"mse": 3.0, "psnr": 10.0}


def test_mean_of_samples_is_over_predicted_frames():
    assert COLUMNS["future"](SCORES, num_context=1) == {"mse": 3.75, "psnr": 10.75}
    assert COLUMNS["late"](SCORES, num_context=1) == {"mse": 5.0, "psnr": 11.0}
    assert mean_of_samples({"moving_psnr": torch.tensor([[20.0, float("nan")]])}) == {"moving_psnr": 20.0}


def test_moving_pixels_are_not_part_of_the_published_protocol():
    scores = {**SCORES, "moving_psnr": SCORES["psnr"]}
    assert set(COLUMNS["paper"](scores, 1)) == {"mse", "psnr"}
    assert set(COLUMNS["future"](scores, 1)) == {"mse", "psnr", "moving_psnr"}


def test_one_shuffled_sample_is_no_match_for_the_best_of_several():
    """It would look worse for having had fewer tries, whether or not the model listens."""
    one = {name: values[:1] for name, values in SCORES.items()}
    clip = ClipRow.of(0, torch.zeros(3, 3, 2, 2), 1, {PREDICTION: SCORES, "copy_last_frame": one, SHUFFLED: one}, {})
    assert set(clip.summaries["paper"]) == {PREDICTION, "copy_last_frame"}
    assert set(clip.summaries["future"]) == {PREDICTION, "copy_last_frame", SHUFFLED}
    alone = ClipRow.of(0, torch.zeros(3, 3, 2, 2), 1, {PREDICTION: one, SHUFFLED: one}, {})
    assert set(alone.summaries["paper"]) == {PREDICTION, SHUFFLED}
    assert "future_best" not in alone.summaries
