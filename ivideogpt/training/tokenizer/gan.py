"""GAN loss of tokenizer training: the generator's term and the discriminator's updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ivideogpt.losses import LossTerms, adaptive_weight, hinge_loss
from ivideogpt.training.common.optim import SoundUpdates, accumulating, advance


@dataclass
class GanLoss:
    """GAN loss: a discriminator with its optimizer. It sees context frames, then future frames, unclamped.

    ``discriminator`` is wrapped for the processes.
    """

    discriminator: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    accelerator: Accelerator
    weight: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        self.updates = SoundUpdates("discriminator", self.optimizer, self.accelerator)

    def added_to(self, terms: LossTerms, reconstructed: Tensor, last_layer: Tensor) -> LossTerms:
        """Add the GAN loss of ``reconstructed`` frames (N, 3, H, W) to the tokenizer's loss.

        It is scaled to pull on the ``last_layer`` as strongly as the perceptual loss of future frames does, or
        their reconstruction loss where there is no perceptual one (VQGAN, Esser et al. 2021, equation 7).
        """
        discriminator = self.accelerator.unwrap_model(self.discriminator)
        with without_gradients(discriminator), self.accelerator.autocast():
            gan = -discriminator(reconstructed).float().mean()
        scale = adaptive_weight(terms.parts.get("perc", terms.parts["recon"]), gan, last_layer)
        return LossTerms(terms.total + self.weight * scale * gan, {**terms.parts, "gan": gan, "gan_scale": scale})

    def backward(self, real: Tensor, reconstructed: Tensor, num_batches: int, is_last: bool) -> Mapping[str, Tensor]:
        """Accumulate the discriminator's gradients for one of ``num_batches`` batches of frames (N, 3, H, W)."""
        with accumulating(self.accelerator, self.discriminator, is_last):
            logits = self.discriminator(torch.cat([real, reconstructed])).float()
            real_logits, fake_logits = logits.chunk(2)
            loss = hinge_loss(real_logits, fake_logits)
            self.accelerator.backward(loss / num_batches)
        metrics = {"disc_loss": loss, "disc_real": real_logits.mean(), "disc_fake": fake_logits.mean()}
        return {name: value.detach() for name, value in metrics.items()}

    def update(self, loss: Tensor) -> dict[str, Tensor | float]:
        """Clip gradients, step the optimizer, advance the schedule."""
        metrics: dict[str, Tensor | float] = {"disc_lr": self.scheduler.get_last_lr()[0]}
        parameters = self.discriminator.parameters()
        metrics["disc_grad_norm"] = norm = self.accelerator.clip_grad_norm_(parameters, self.max_grad_norm)
        metrics["disc_skipped_updates"] = advance(self.updates, self.scheduler, loss, norm)
        return metrics

    def state(self) -> dict[str, Any]:
        """Return the components to checkpoint, by name."""
        return {
            "discriminator": self.accelerator.unwrap_model(self.discriminator),
            "discriminator_optimizer": self.optimizer,
            "discriminator_scheduler": self.scheduler,
        }


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through the module, without any for its own parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
