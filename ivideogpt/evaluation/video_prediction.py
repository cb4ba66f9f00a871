"""Scores predicted futures of recorded clips beside what they must beat and what they cannot exceed.

Knows world models and batches of clips; knows no data sets and no files.

Dimension keys: B clips, T = t + F frames, t context frames, F future frames, C H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ivideogpt.data.batches import ClipBatch
from ivideogpt.utils.video_metric import PSNR_EPSILON, frame_psnr, frame_ssim
from ivideogpt.world_model import Rollout, WorldModel, evaluating

# A pixel counts as moving where a channel differs by more than this from the last context frame (frames are in [0, 1]).
MOVING_THRESHOLD = 0.05

METRICS = {"psnr": frame_psnr, "ssim": frame_ssim}


def score_frames(truth: Tensor, frames: Tensor) -> dict[str, Tensor]:
    """Every metric of every frame: (..., C, H, W), which broadcast, to (...)."""
    return {name: metric(truth, frames) for name, metric in METRICS.items()}


def copy_last_frame(frames: Tensor, num_context: int) -> Tensor:
    """The last context frame for ever: what a model of a still world would predict, (B, F, C, H, W)."""
    return frames[:, num_context - 1 : num_context].expand_as(frames[:, num_context:])


@torch.inference_mode()
def reconstruct_future(model: WorldModel, frames: Tensor) -> Tensor:
    """Clips (B, T, C, H, W) to their true future through the tokenizer and back, (B, F, C, H, W) in [0, 1].

    The best that a prediction can look.
    """
    tokenizer, frames = model.tokenizer, frames.to(model.device)
    with evaluating(tokenizer):
        encoded = tokenizer.encode_context(frames[:, : tokenizer.context_length])
        codes = tokenizer.encode_dynamics(frames[:, tokenizer.context_length :], encoded.features)
        decoded = tokenizer.decode_dynamics(codes, tokenizer.decoding_features(encoded.codes))
    return decoded.float().clamp(0, 1)


def references(model: WorldModel, frames: Tensor) -> dict[str, Tensor]:
    """What a prediction is measured against beside the truth, (B, F, C, H, W) each."""
    return {
        "reconstruction": reconstruct_future(model, frames),
        "copy_last_frame": copy_last_frame(frames, model.metadata.context_length),
    }


def sample_futures(model: WorldModel, clips: ClipBatch, seed: int, num_samples: int = 1) -> Rollout:
    """Futures of each clip under its recorded actions. The one at the last context frame leads to the first."""
    t, num_frames = model.metadata.context_length, clips.frames.shape[1]
    actions = None if model.action_dim is None or clips.actions is None else clips.actions[:, t - 1 : num_frames - 1]
    return model.predict(clips.frames[:, :t], actions, num_frames - t, num_samples=num_samples, seed=seed)


def predict_future(model: WorldModel, clips: ClipBatch, seed: int) -> Tensor:
    """One sampled future of each clip, (B, F, C, H, W)."""
    return sample_futures(model, clips, seed).frames[:, 0]


def futures(model: WorldModel, clips: ClipBatch, seed: int) -> dict[str, Tensor]:
    """Everything that is scored against the true future, (B, F, C, H, W) each.

    ``shuffled_actions`` predicts under the actions of the next clip of the batch: does the model listen?
    """
    candidates = {
        "prediction": predict_future(model, clips, seed),
        **references(model, clips.frames),
    }
    if model.action_dim is not None and clips.actions is not None:
        shuffled = ClipBatch(clips.frames, clips.actions.roll(1, dims=0))
        candidates["shuffled_actions"] = predict_future(model, shuffled, seed)
    return candidates


def moving_pixels(truth: Tensor, last_context: Tensor) -> Tensor:
    """Where the future (B, F, C, H, W) differs from the last context frame (B, C, H, W), as (B, F, 1, H, W)."""
    return (truth - last_context[:, None]).abs().amax(dim=2, keepdim=True) > MOVING_THRESHOLD


def moving_psnr(truth: Tensor, frames: Tensor, moving: Tensor) -> Tensor:
    """PSNR over the moving pixels of each frame, (B, F); NaN where nothing moves."""
    squared = (truth - frames).square().mean(dim=2, keepdim=True)
    mse = (squared * moving).sum(dim=(2, 3, 4)) / moving.sum(dim=(2, 3, 4))
    return -10 * torch.log10(mse + PSNR_EPSILON)


@dataclass(frozen=True)
class VideoScores:
    """Scores of every future frame of every clip: name of the candidate -> metric -> (clips, F)."""

    num_context: int
    frames: dict[str, dict[str, Tensor]]

    @property
    def num_clips(self) -> int:
        return len(next(iter(self.frames["prediction"].values())))

    def mean(self, first: int, last: int) -> dict[str, dict[str, float]]:
        """Means over the frames ``first`` .. ``last`` of the clip, both included (context frames are 0 .. t - 1)."""
        chosen = slice(first - self.num_context, last - self.num_context + 1)
        return {
            name: {metric: float(values[:, chosen].nanmean()) for metric, values in of.items()}
            for name, of in self.frames.items()
        }

    def per_frame(self) -> dict[str, dict[str, list[float]]]:
        return {
            name: {metric: values.nanmean(dim=0).tolist() for metric, values in of.items()}
            for name, of in self.frames.items()
        }


def score_clips(model: WorldModel, batches: Iterable[ClipBatch], seed: int = 0) -> VideoScores:
    """Predict every clip once and score it. Needs batches of several clips: shuffled actions are the next clip's."""
    collected: dict[str, dict[str, list[Tensor]]] = {}
    t = model.metadata.context_length
    for number, clips in enumerate(batches):
        clips = clips.to(model.device)
        truth = clips.frames[:, t:]
        moving = moving_pixels(truth, clips.frames[:, t - 1])
        for name, frames in futures(model, clips, seed + number).items():
            scores = {**score_frames(truth, frames), "moving_psnr": moving_psnr(truth, frames, moving)}
            for metric, values in scores.items():
                collected.setdefault(name, {}).setdefault(metric, []).append(values.cpu())
    return VideoScores(
        t, {name: {metric: torch.cat(parts) for metric, parts in of.items()} for name, of in collected.items()}
    )
