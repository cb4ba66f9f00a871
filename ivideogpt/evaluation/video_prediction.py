"""Score predicted futures of recorded clips, with baselines and an upper bound.

Knows world models and batches of clips; knows no datasets and no files.

Dimension keys: B clips, N samples of each, T = t + F frames, t context frames, F future frames, C H W pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ivideogpt.data.clips.batches import ClipBatch
from ivideogpt.evaluation.rows import PREDICTION, SHUFFLED, TRUTH, ClipRow
from ivideogpt.metrics.frame_metrics import FrameScorer
from ivideogpt.metrics.fvd import I3D
from ivideogpt.metrics.table import METRICS, psnr_of
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.world_model import Rollout, WorldModel, evaluating

# A pixel is moving if a channel differs from the last context frame by more than this (frames are in [0, 1]).
MOVING_THRESHOLD = 0.05

PIXELS_AT_ONCE = 160 * 64**2  # limit per call of the tokenizer
COPY, RECONSTRUCTION = "copy_last_frame", "reconstruction"
CANDIDATES = (PREDICTION, RECONSTRUCTION, COPY, SHUFFLED)
FVD_SPANS = ("paper", "future")


def score_frames(truth: Tensor, frames: Tensor) -> dict[str, Tensor]:
    """Score every frame by the metrics without a network; (..., C, H, W) broadcast, scores are (...)."""
    return {name: metric.function(truth, frames) for name, metric in METRICS.items() if metric.function is not None}


def copy_last_frame(frames: Tensor, num_context: int) -> Tensor:
    """Repeat the last context frame as the future (B, F, C, H, W): the baseline of a static world."""
    return frames[:, num_context - 1 : num_context].expand_as(frames[:, num_context:])


@torch.inference_mode()
def reconstruct_future(model: WorldModel, frames: Tensor) -> Tensor:
    """Encode and decode the true future of clips (B, T, C, H, W): (B, F, C, H, W) in [0, 1].

    This is the upper bound of a prediction.
    """
    return reconstruct(model.tokenizer, frames).frames[:, model.tokenizer.context_length :]


@dataclass(frozen=True)
class Reconstruction:
    """Reconstructed ``frames`` (B, T, C, H, W) in [0, 1], and their codes (B, n)."""

    frames: Tensor
    context_codes: Tensor
    dynamics_codes: Tensor


@torch.inference_mode()
def reconstruct(tokenizer: CompressiveVQModel, frames: Tensor) -> Reconstruction:
    """Encode and decode clips (B, T, C, H, W), a few at a time."""
    t, parts = tokenizer.context_length, []
    with evaluating(tokenizer):
        for clips in frames.split(max(1, PIXELS_AT_ONCE // frames[0, :, 0].numel())):
            some = clips.to(tokenizer.device)
            context = tokenizer.encode_context(some[:, :t])
            dynamics = tokenizer.encode_dynamics(some[:, t:], context.features)
            decoded = tokenizer.decode_context(context.codes)
            future = tokenizer.decode_dynamics(dynamics, decoded.features)
            reconstructed = torch.cat([decoded.frames, future], dim=1).float().clamp(0, 1)
            parts.append((reconstructed, context.codes.flatten(1), dynamics.flatten(1)))
    return Reconstruction(*(torch.cat(tensors) for tensors in zip(*parts)))


def references(model: WorldModel, frames: Tensor) -> dict[str, Tensor]:
    """Return the baseline and the upper bound of a prediction, (B, F, C, H, W) each."""
    copied = copy_last_frame(frames, model.metadata.context_length)
    return {RECONSTRUCTION: reconstruct_future(model, frames), COPY: copied}


def sample_futures(
    model: WorldModel,
    clips: ClipBatch,
    seed: int,
    num_samples: int = 1,
    clip_numbers: Sequence[int] | None = None,
    first_sample: int = 0,
) -> Rollout:
    """Sample futures of each clip under its recorded actions.

    Samples depend only on the seed and the numbers of clip and sample.
    """
    t = model.metadata.context_length
    layout = model.layout.with_future_frames(clips.frames.shape[1] - t)
    actions = None if model.action_dim is None or clips.actions is None else layout.to_future(clips.actions)
    options: dict[str, Any] = dict(num_samples=num_samples, clip_numbers=clip_numbers, first_sample=first_sample)
    return model.predict(clips.frames[:, :t], actions, layout.future_frames, seed=seed, **options)


def predict_future(model: WorldModel, clips: ClipBatch, seed: int, clip_numbers: Sequence[int] | None = None) -> Tensor:
    """Sample one future of each clip, (B, F, C, H, W)."""
    return sample_futures(model, clips, seed, clip_numbers=clip_numbers).frames[:, 0]


def moving_pixels(truth: Tensor, last_context: Tensor) -> Tensor:
    """Return the mask (B, F, 1, H, W) of future pixels (B, F, C, H, W) unlike ``last_context`` (B, C, H, W)."""
    return (truth - last_context[:, None]).abs().amax(dim=2, keepdim=True) > MOVING_THRESHOLD


def moving_psnr(truth: Tensor, frames: Tensor, moving: Tensor) -> Tensor:
    """Compute PSNR over the moving pixels of each frame, (..., F); NaN where nothing moves."""
    squared = (truth - frames).square().mean(dim=-3, keepdim=True)
    return psnr_of((squared * moving).sum(dim=(-3, -2, -1)) / moving.sum(dim=(-3, -2, -1)))


@dataclass(frozen=True)
class PredictionScorer:
    """Scorer of sampled futures of numbered clips, and of the candidates to compare them with.

    The candidates are ``prediction``; ``reconstruction``, the encoded and decoded true future; ``copy_last_frame``;
    and ``shuffled_actions``, one future under another clip's actions. All of them start with the same reconstructed
    context, so that they differ only in the future.

    Attributes:
        scorer: compares frames.
        i3d: features for FVD; None: no FVD.
        fvd_of: span, whole clips ("paper") or predicted frames ("future"), -> candidates to compute FVD of.
        max_rows: batch size of sampling, in futures; None: all of a batch.
        max_videos: batch size of I3D.
    """

    model: WorldModel
    scorer: FrameScorer
    i3d: I3D | None = None
    fvd_of: Mapping[str, Collection[str]] = field(default_factory=lambda: dict.fromkeys(FVD_SPANS, CANDIDATES))
    num_samples: int = 1
    seed: int = 0
    max_rows: int | None = None
    max_videos: int | None = None

    def __call__(self, numbers: Sequence[int], clips: ClipBatch, other_actions: Tensor | None = None) -> list[ClipRow]:
        """Score clips. ``other_actions`` (B, T, D) are those of other clips; without them no actions are shuffled."""
        at_a_time = len(numbers) if self.max_rows is None else max(1, self.max_rows // self.num_samples)
        scored: list[ClipRow] = []
        for first in range(0, len(numbers), at_a_time):
            rows = slice(first, first + at_a_time)
            some = ClipBatch(clips.frames[rows], None if clips.actions is None else clips.actions[rows])
            others = None if other_actions is None else other_actions[rows]
            scored += self._score(numbers[rows], some.to(self.model.device), others)
        return scored

    @torch.inference_mode()
    def _score(self, numbers: Sequence[int], clips: ClipBatch, other_actions: Tensor | None) -> list[ClipRow]:
        scored = _Candidates(self, clips.frames, self.model.metadata.context_length)
        at_a_time = min(self.max_rows or self.num_samples, self.num_samples)
        for first in range(0, self.num_samples, at_a_time):
            num_samples = min(at_a_time, self.num_samples - first)
            rollout = sample_futures(self.model, clips, self.seed, num_samples, numbers, first)
            scored.add(PREDICTION, rollout.context, rollout.frames)
        context = rollout.context
        for name, future in references(self.model, clips.frames).items():
            scored.add(name, context, future[:, None])
        if other_actions is not None:
            shuffled = ClipBatch(clips.frames, other_actions.to(self.model.device))
            scored.add(SHUFFLED, context, predict_future(self.model, shuffled, self.seed, numbers)[:, None])
        return scored.by_clip(numbers)


class _Candidates:
    """Scores of one batch's candidates, collected incrementally. Frames are not kept."""

    def __init__(self, settings: PredictionScorer, truth: Tensor, num_context: int) -> None:
        self._settings = settings
        self._truth = truth
        self._num_context = num_context
        self._moving = moving_pixels(truth[:, num_context:], truth[:, num_context - 1])
        self._context_scores: dict[str, Tensor] = {}
        self._scores: dict[str, list[dict[str, Tensor]]] = {}
        self._features: dict[tuple[str, str], list[Tensor]] = {}
        if settings.i3d is not None:
            self._add_features(TRUTH, truth[:, None])

    def add(self, name: str, context: Tensor, futures: Tensor) -> None:
        """Score some samples of a candidate: ``context`` (B, t, C, H, W) and ``futures`` (B, n, F, C, H, W)."""
        num_samples, context = futures.shape[1], context[:, None]
        true_context, true_future = self._truth[:, : self._num_context], self._truth[:, self._num_context :]
        if not self._context_scores:  # all candidates share the context
            self._context_scores = self._settings.scorer(true_context, context)
        future_scores = self._settings.scorer(true_future, futures)
        scores = {
            metric: torch.cat([self._context_scores[metric].expand(-1, num_samples, -1), values], dim=2)
            for metric, values in future_scores.items()
        }
        moving = moving_psnr(true_future[:, None], futures, self._moving[:, None])
        unknown = moving.new_full((*moving.shape[:2], self._num_context), torch.nan)
        self._scores.setdefault(name, []).append({**scores, "moving_psnr": torch.cat([unknown, moving], dim=2)})
        if self._settings.i3d is not None:
            self._add_features(name, torch.cat([context.expand(-1, num_samples, -1, -1, -1, -1), futures], dim=2))

    def by_clip(self, numbers: Sequence[int]) -> list[ClipRow]:
        scores = {
            name: {metric: torch.cat([part[metric] for part in parts], dim=1).cpu() for metric in parts[0]}
            for name, parts in self._scores.items()
        }
        features = {key: torch.cat(parts, dim=1).numpy() for key, parts in self._features.items()}
        rows = []
        for clip, (number, truth) in enumerate(zip(numbers, self._truth, strict=True)):
            values = {name: {metric: part[clip] for metric, part in row.items()} for name, row in scores.items()}
            vectors = {key: part[clip] for key, part in features.items()}
            rows.append(ClipRow.of(number, truth, self._num_context, values, vectors))
        return rows

    def _add_features(self, name: str, videos: Tensor) -> None:
        """Add features of samples (B, n, T, C, H, W), whole and without their context."""
        assert self._settings.i3d is not None
        for span, candidates in self._settings.fvd_of.items():
            if name not in (TRUTH, *candidates):
                continue
            first = self._num_context if span == "future" else 0
            features = self._settings.i3d.in_parts(videos[:, :, first:].flatten(0, 1), self._settings.max_videos)
            self._features.setdefault((span, name), []).append(features.float().unflatten(0, videos.shape[:2]).cpu())
