"""Scores: what is compared with what, over which pixels, under whose actions."""

import math
from typing import ClassVar

import pytest
import torch

from ivideogpt.data.clips.batches import ClipBatch
from ivideogpt.evaluation.rows import RowSummary
from ivideogpt.evaluation.video_prediction import (
    PredictionScorer,
    copy_last_frame,
    moving_pixels,
    moving_psnr,
    reconstruct_future,
    sample_futures,
)
from ivideogpt.metrics.frame_metrics import FrameScorer, frame_psnr
from ivideogpt.world_model import WorldModel


@pytest.fixture
def model(tiny_world_model) -> WorldModel:
    return WorldModel.from_pretrained(tiny_world_model)


def random_clips(model: WorldModel, batch: int) -> ClipBatch:
    length = model.metadata.segment_length
    generator = torch.Generator().manual_seed(batch)
    return ClipBatch(
        torch.rand(batch, length, 3, 64, 64, generator=generator),
        torch.randn(batch, length, model.action_dim, generator=generator),
    )


def test_copying_repeats_the_last_context_frame():
    frames = torch.rand(2, 5, 3, 8, 8)
    copied = copy_last_frame(frames, num_context=2)
    assert copied.shape == (2, 3, 3, 8, 8)
    assert torch.equal(copied, frames[:, 1:2].expand(-1, 3, -1, -1, -1))


def test_moving_psnr_sees_moving_pixels_only():
    """Over all pixels a still background hides whether the arm is right."""
    last_context = torch.zeros(1, 3, 8, 8)
    truth = torch.zeros(1, 1, 3, 8, 8)
    truth[..., :4, :] = 0.5  # the upper half moves
    frames = truth.clone()
    frames[..., 4:, :] = 1.0  # wrong where nothing moves
    frames[..., :4, :] += 0.1
    moving = moving_pixels(truth, last_context)
    assert moving.shape == (1, 1, 1, 8, 8)
    assert moving_psnr(truth, frames, moving).item() == pytest.approx(20.0, abs=1e-3)


def test_moving_psnr_of_a_still_frame_does_not_count():
    still = torch.zeros(1, 1, 3, 8, 8)
    assert math.isnan(moving_psnr(still, still, moving_pixels(still, still[:, 0])).item())


def test_predictions_get_the_actions_that_led_on_from_the_last_context_frame(model, monkeypatch):
    """Actions that are one step off go unnoticed in every score but a low one."""
    clips, seen = random_clips(model, 3), []
    predict = WorldModel.predict

    def spy(self, context, actions, horizon, **kwargs):
        seen.append(actions)
        return predict(self, context, actions, horizon, **kwargs)

    monkeypatch.setattr(WorldModel, "predict", spy)
    others = clips.actions.roll(1, dims=0)
    PredictionScorer(model, FrameScorer())([0, 1, 2], clips, others)
    true, shuffled = seen
    t, length = model.metadata.context_length, model.metadata.segment_length
    assert torch.equal(true, clips.actions[:, t - 1 : length - 1])
    assert torch.equal(shuffled, others[:, t - 1 : length - 1])


def test_the_tokenizer_is_in_eval_mode_and_gets_its_mode_back(model):
    """Its attention has dropout: in the middle of training a reconstruction would be another one every time."""
    frames = random_clips(model, 2).frames
    expected = reconstruct_future(model, frames)
    model.tokenizer.train()
    assert torch.equal(reconstruct_future(model, frames), expected)
    assert all(module.training for module in model.tokenizer.modules())


def test_every_frame_of_every_clip_is_scored(model):
    t, length = model.metadata.context_length, model.metadata.segment_length
    clips = random_clips(model, 3)
    scored = PredictionScorer(model, FrameScorer(), num_samples=2)([7, 8, 9], clips, clips.actions.roll(1, dims=0))
    assert [clip.number for clip in scored] == [7, 8, 9]
    assert set(scored[0].curves) == {"prediction", "reconstruction", "copy_last_frame", "shuffled_actions"}
    assert {len(curve) for clip in scored for of in clip.curves.values() for curve in of.values()} == {length}
    copied = frame_psnr(clips.frames[1, t:], clips.frames[1, t - 1])
    assert scored[1].curves["copy_last_frame"]["psnr"][t:] == pytest.approx(copied.tolist(), rel=1e-5)


def test_all_candidates_have_the_same_reconstructed_context(model):
    """The true context in front of a copied frame would count as two perfect predictions."""
    (clip,) = PredictionScorer(model, FrameScorer())([0], random_clips(model, 1))
    contexts = [curves["psnr"][: model.metadata.context_length] for curves in clip.curves.values()]
    assert contexts[0] == contexts[1] == contexts[2]
    assert max(contexts[0]) < 60


def test_scores_do_not_depend_on_what_is_scored_with_them(model):
    """Every clip and sample has its own random numbers: batches and chunks must not show in a score."""
    clips, numbers = random_clips(model, 4), [3, 4, 5, 6]
    settings = dict(model=model, scorer=FrameScorer(), num_samples=3, seed=1)
    whole = PredictionScorer(**settings)(numbers, clips, clips.actions.roll(1, dims=0))
    by_rows = [
        PredictionScorer(**settings, max_rows=rows)(
            numbers[row : row + 1],
            ClipBatch(clips.frames[row : row + 1], clips.actions[row : row + 1]),
            clips.actions.roll(1, dims=0)[row : row + 1],
        )[0]
        for row, rows in zip(range(4), (1, 2, 3, 100), strict=True)
    ]
    for one, other in zip(whole, by_rows, strict=True):
        for column, candidates in one.summaries.items():
            for name, metrics in candidates.items():
                assert other.summaries[column][name] == pytest.approx(metrics, abs=1e-5), (column, name)


def test_futures_of_a_clip_have_the_same_tokens_in_any_batch(model):
    clips = random_clips(model, 3)
    whole = sample_futures(model, clips, seed=2, num_samples=3, clip_numbers=[10, 11, 12]).tokens
    second = ClipBatch(clips.frames[1:2], clips.actions[1:2])
    alone = [
        sample_futures(model, second, seed=2, num_samples=count, clip_numbers=[11], first_sample=first).tokens[0]
        for first, count in ((0, 1), (1, 2))
    ]
    assert torch.equal(torch.cat(alone), whole[1])
    assert not torch.equal(whole[1, 0], whole[1, 1])


def test_fvd_is_over_all_samples_with_and_without_their_context(model):
    class Features:
        lengths: ClassVar[list[int]] = []

        def in_parts(self, videos, max_rows):
            self.lengths.append(videos.shape[1])
            return videos.mean(dim=(1, 3, 4))

    t, length = model.metadata.context_length, model.metadata.segment_length
    (clip,) = PredictionScorer(model, FrameScorer(), Features(), num_samples=2)([0], random_clips(model, 1))
    assert set(Features.lengths) == {length, length - t}
    assert clip.features["paper", "truth"].shape == (1, 3)
    assert clip.features["future", "prediction"].shape == (2, 3)
    distances = RowSummary([clip]).fvd()
    assert set(distances) == {"paper", "future"}
    assert set(distances["paper"]) == {"prediction", "reconstruction", "copy_last_frame"}


def test_fvd_is_measured_where_it_is_wanted_alone(model):
    """The published network takes no eight frames; and it is what most of a validation's time would go to."""
    seen = []

    class Features:
        def in_parts(self, videos, max_rows):
            seen.append(videos.shape[1])
            return videos.mean(dim=(1, 3, 4))

    scorer = PredictionScorer(model, FrameScorer(), Features(), fvd_of={"paper": ("prediction",)})
    (clip,) = scorer([0], random_clips(model, 1))
    assert set(clip.features) == {("paper", "truth"), ("paper", "prediction")}
    assert seen == [model.metadata.segment_length] * 2
