"""Training losses as functions of model outputs, shared by the training scripts and model-based RL.

The GAN loss, which needs an optimizer of its own, is in :mod:`ivideogpt.training.tokenizer.gan`.

Dimension keys: B clips, T = t + F frames, t context frames, F future frames, L tokens, D action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.layout import DYNAMICS_GRID, TokenLayout
from ivideogpt.metrics.lpips import LPIPS

# A pixel that has changed by this much since the last context frame (frames are in [0, 1]) counts as moving in full.
FULL_MOTION = 0.1
# A patch moves if a pixel of it has changed by more than this since the last context frame.
NO_MOTION = 2.5 / 255  # between two steps of 8-bit pixels


@dataclass(frozen=True)
class LossTerms:
    """``total`` is what is minimised; ``parts`` are its terms before weighting, for the log."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)

    def detached(self) -> dict[str, Tensor]:
        """Return every number for the log, without its graph, still on its device."""
        return {"loss": self.total.detach(), **{name: part.detach() for name, part in self.parts.items()}}


@dataclass(frozen=True)
class TokenizerLoss:
    """Reconstruction, perceptual and commitment terms of one batch (iVideoGPT, equation 1; without the GAN).

    ``lpips`` measures batches (N, 3, H, W) around [-1, 1]; without it the perceptual terms are left out.
    ``motion_weight``, ``gradient_weight`` and ``still_weight`` are additions to the paper's loss (0 turns them off):
    more weight where a future pixel differs from the last context frame, an L1 on image gradients that keeps edges
    sharp, and dynamics latents of zero where nothing has moved: tokens then tell what changes and not what is there.
    """

    reconstruction: Literal["l1", "l2"] = "l1"
    recon_weight: float = 1.0
    perc_weight: float = 1.0
    balanced: bool = False
    motion_weight: float = 0.0
    gradient_weight: float = 0.0
    still_weight: float = 0.0
    lpips: LPIPS | None = None

    def __call__(self, frames: Tensor, output: Any, num_context: int) -> LossTerms:
        """Compute the loss of ``frames`` (B, T, 3, H, W) in [0, 1] from the ``output`` of the tokenizer's forward."""
        context, future = frames[:, :num_context], frames[:, num_context:]
        num_frames = frames.shape[1]
        shares = (num_frames - num_context) / num_frames, num_context / num_frames
        future_share, context_share = shares if self.balanced else (1.0, 1.0)

        sample, ref_sample = output.sample.float(), output.ref_sample.float()
        weights = 1 + self.motion_weight * (_change(context, future) / FULL_MOTION).clamp(max=1).flatten(0, 1)
        context, future = context.flatten(0, 1), future.flatten(0, 1)
        parts = {
            "recon": (self._error(sample, future) * weights).mean(),
            "ref_recon": self._error(ref_sample, context).mean(),
            "commit": output.commit_loss,
            "dyn_commit": output.dyn_commit_loss,
        }
        total = self.recon_weight * (future_share * parts["recon"] + context_share * parts["ref_recon"])
        total = total + parts["commit"] + parts["dyn_commit"]
        if self.gradient_weight:
            parts["gradient"] = _gradient_difference(sample, future, weights)
            parts["ref_gradient"] = _gradient_difference(ref_sample, context, torch.ones_like(context))
            both = future_share * parts["gradient"] + context_share * parts["ref_gradient"]
            total = total + self.gradient_weight * both
        if self.still_weight:
            parts["still"] = _energy_ratio(output.dynamics_latents.float(), moving_patches(frames, num_context))
            total = total + self.still_weight * parts["still"]
        if self.lpips is not None:
            parts["perc"] = self._perceptual(sample, future)
            parts["ref_perc"] = self._perceptual(ref_sample, context)
            total = total + self.perc_weight * (future_share * parts["perc"] + context_share * parts["ref_perc"])
        return LossTerms(total, parts)

    def _error(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        difference = reconstruction - truth
        return difference.abs() if self.reconstruction == "l1" else difference.square()

    def _perceptual(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        assert self.lpips is not None
        # not its forward, which refuses reconstructions that overshoot, as they do in training
        return self.lpips.distance(*(self.lpips.features(2 * frames - 1) for frames in (reconstruction, truth))).mean()


def _change(context: Tensor, future: Tensor) -> Tensor:
    """Largest change of a channel of each future pixel since the last context frame: (B, F, 1, H, W)."""
    return (future - context[:, -1:]).abs().amax(dim=2, keepdim=True)


def moving_patches(frames: Tensor, num_context: int) -> Tensor:
    """Mask patches, one a dynamics token, that differ from the last context frame: clips (B, T, ...) to (B F, 16)."""
    change = _change(frames[:, :num_context], frames[:, num_context:]).flatten(0, 1)
    return F.adaptive_max_pool2d(change, DYNAMICS_GRID).flatten(1) > NO_MOTION


def _energy_ratio(latents: Tensor, moving: Tensor) -> Tensor:
    """Mean square of the still latents divided by that of the moving ones, without gradient; 0 if nothing moves.

    Latents (N, patches, d), ``moving`` (N, patches).
    """
    energy = latents.square().mean(dim=-1)
    moving_energy = (energy.detach() * moving).sum() / moving.sum().clamp(min=1)
    still_energy = (energy * ~moving).sum() / (~moving).sum().clamp(min=1)
    return torch.where(moving.any(), still_energy / moving_energy.clamp(min=1e-6), 0)


def _gradient_difference(reconstruction: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Mean L1 between the two images' horizontal and vertical differences, (N, 3, H, W)."""
    error = reconstruction - truth
    vertical = error.diff(dim=-2).abs() * weights[..., 1:, :]
    horizontal = error.diff(dim=-1).abs() * weights[..., 1:]
    return vertical.mean() + horizontal.mean()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of a discriminator's logits of real and of reconstructed frames, any shape."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def adaptive_weight(reference: Tensor, loss: Tensor, parameter: Tensor) -> Tensor:
    """VQGAN adaptive weight: |gradient of ``reference``| / |gradient of ``loss``| at ``parameter``, at most 10,000.

    Both graphs are kept (VQGAN, Esser et al. 2021, equation 7).
    """
    (wanted,) = torch.autograd.grad(reference, parameter, retain_graph=True)
    (found,) = torch.autograd.grad(loss, parameter, retain_graph=True)
    return (wanted.float().norm() / found.float().norm().clamp(min=1e-8)).clamp(max=1e4).detach()


def transformer_loss(
    model: nn.Module,
    tokens: Tensor,
    layout: TokenLayout,
    actions: Tensor | None = None,
    rewards: Tensor | None = None,
    reward_weight: float = 1.0,
    success_weight: float = 1.0,
    inputs: Tensor | None = None,
    past_key_values: Any = None,
    successes: Tensor | None = None,
) -> LossTerms:
    """Next-token cross-entropy of future frames, plus the terms of the heads that the model has.

    Args:
        model: a LlamaForCausalLM, or a HeadModelWithAction if ``actions`` are given (possibly wrapped for DDP).
        tokens: (B, L) ids.
        actions: (B, T, D) of the whole clip; see :meth:`TokenLayout.to_future`.
        rewards: (B, T) of the whole clip, ``rewards[:, j]`` earned by ``actions[:, j]``, in the head's space.
        inputs: (B, L) what the model reads, if that differs from the ``tokens`` that it is to predict.
        past_key_values: a cache that holds all before the first future separator, if that has been read.
        successes: (B, T) of the whole clip, 0 or 1, as the rewards are.
    """
    # from the first future separator on: the prompt has no labels and needs no logits
    labels = layout.labels(tokens)[:, layout.prompt_length - 1 :]
    inputs = tokens if inputs is None else inputs
    if actions is None:
        if past_key_values is not None:
            inputs = inputs[:, layout.prompt_length - 1 :]
        given = {"input_ids": inputs, "labels": labels, "past_key_values": past_key_values}
        loss = model(**given, logits_to_keep=labels.shape[1]).loss
        return LossTerms(loss, {"ce": loss})
    result = model(input_ids=inputs, labels=labels, action=actions, past_key_values=past_key_values)
    outputs, predicted = result if isinstance(result, tuple) else (result, None)
    total, parts = outputs.loss, {"ce": outputs.cross_entropy}
    if outputs.action_recon_loss is not None:
        parts["action_recon"] = outputs.action_recon_loss
    if rewards is not None and predicted is not None:
        parts["reward"] = (predicted.squeeze(-1).float() - layout.to_future(rewards)).square().mean()
        total = total + reward_weight * parts["reward"]
    if successes is not None and outputs.success_logits is not None:
        logits = outputs.success_logits.squeeze(-1).float()
        parts["success"] = F.binary_cross_entropy_with_logits(logits, layout.to_future(successes))
        total = total + success_weight * parts["success"]
    return LossTerms(total, parts)
