"""Scores: what is compared with what, over which pixels, under whose actions."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from ivideogpt.data.batches import ClipBatch
from ivideogpt.data.loaders import build_evaluation_clips
from ivideogpt.evaluation import video_prediction
from ivideogpt.evaluation.__main__ import EvaluationArgs, data_config
from ivideogpt.evaluation.video_prediction import (
    copy_last_frame,
    moving_pixels,
    moving_psnr,
    reconstruct_future,
    score_clips,
)
from ivideogpt.flags import parse
from ivideogpt.pretrained import ModelMetadata
from ivideogpt.world_model import WorldModel
from tests.data.synthetic import write_dataset, write_episode


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
    video_prediction.futures(model, clips, seed=0)
    true, shuffled = seen
    t, length = model.metadata.context_length, model.metadata.segment_length
    assert torch.equal(true, clips.actions[:, t - 1 : length - 1])
    assert torch.equal(shuffled, true[[2, 0, 1]])


def test_the_tokenizer_is_in_eval_mode_and_gets_its_mode_back(model):
    """Its attention has dropout: in the middle of training a reconstruction would be another one every time."""
    frames = random_clips(model, 2).frames
    expected = reconstruct_future(model, frames)
    model.tokenizer.train()
    assert torch.equal(reconstruct_future(model, frames), expected)
    assert all(module.training for module in model.tokenizer.modules())


def test_scores_cover_every_future_frame_of_every_clip(model):
    scores = score_clips(model, [random_clips(model, 3), random_clips(model, 2)])
    num_future = model.metadata.segment_length - model.metadata.context_length
    assert set(scores.frames) == {"prediction", "reconstruction", "copy_last_frame", "shuffled_actions"}
    assert {tuple(values.shape) for of in scores.frames.values() for values in of.values()} == {(5, num_future)}
    last = model.metadata.segment_length - 1
    means = scores.mean(last, last)["copy_last_frame"]["psnr"]
    assert means == pytest.approx(scores.per_frame()["copy_last_frame"]["psnr"][-1], abs=1e-5)


@pytest.fixture
def episodes(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        image = rng.integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
        action = rng.normal(size=(9, 4)).astype(np.float32)
        write_episode(tmp_path / "data" / "noise" / f"{number}.npz", 9, image=image, action=action)
    return tmp_path / "data"


def numbered_clip(folder, metadata: ModelMetadata, *flags: str) -> list[int]:
    """The frame numbers of one clip that the command would score. Episodes have 20 frames, as their pixels say."""
    required = ("--pretrained_model_name_or_path", "unused", "--dataset_path", str(folder))
    config = data_config(parse(EvaluationArgs, [*required, *flags]), metadata)
    (clip,) = build_evaluation_clips(config, "all", 1, seed=0)
    return (clip.frames[0, :, 0, 0, 0] * 255).round().int().tolist()


def test_a_goal_comes_first_as_in_training(tmp_path):
    """Frame 0 in its place would tell the model to end where it began."""
    write_dataset(tmp_path / "robot")
    goal, *others = numbered_clip(tmp_path, ModelMetadata(8, 2, segment_length=5, goal_conditioned=True))
    assert others == list(range(others[0], others[0] + 4))
    assert goal == others[-1]


@pytest.mark.parametrize(("flags", "step"), [((), 4), (("--video_stepsize", "6"), 2)])
def test_frames_are_as_far_apart_as_in_training(tmp_path, flags, step):
    write_dataset(tmp_path / "robot")
    numbers = numbered_clip(tmp_path, ModelMetadata(8, 2, segment_length=5, dataset_step=4), *flags)
    assert set(np.diff(numbers)) == {step}


def run(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "ivideogpt.evaluation", *flags], capture_output=True, text=True)


def test_command(tiny_world_model, episodes, tmp_path):
    """The same command gives the same report."""
    reports = []
    for name in ("a.json", "b.json"):
        done = run(
            *("--pretrained_model_name_or_path", str(tiny_world_model), "--dataset_path", str(episodes)),
            *("--split", "all", "--num_clips", "4", "--batch_size", "2", "--late_frames", "1"),
            *("--output_path", str(tmp_path / name)),
        )
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((tmp_path / name).read_text()))
    assert "shuffled actions" in done.stdout
    assert reports[0]["num_clips"] == 4
    assert reports[0]["means"] == reports[1]["means"]


def test_a_last_batch_of_one_clip_is_refused(tiny_world_model, episodes):
    """Its actions cannot be shuffled: the score would be the prediction's own."""
    done = run(
        *("--pretrained_model_name_or_path", str(tiny_world_model), "--dataset_path", str(episodes)),
        *("--num_clips", "5", "--batch_size", "2"),
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
