"""The plain encoder and decoder of context frames: diffusers' blocks that also hand out their feature maps.

Dimension keys: N images, C channels, H W pixels of the level at hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.models.autoencoders import vae
from torch import Tensor, nn


def run_block(owner: Any, block: nn.Module, hidden: Tensor) -> Tensor:
    """``block(hidden)``, recomputed in the backward pass if ``owner`` does gradient checkpointing."""
    if owner.gradient_checkpointing and torch.is_grad_enabled():
        return owner._gradient_checkpointing_func(block, hidden)
    return block(hidden)


def run_blocks(owner: Any, blocks: Iterable[nn.Module], hidden: Tensor) -> list[Tensor]:
    """The feature map after each block in turn."""
    features = []
    for block in blocks:
        hidden = run_block(owner, block, hidden)
        features.append(hidden)
    return features


def project_out(owner: Any, hidden: Tensor) -> Tensor:
    """The common end of encoders and decoders: norm, SiLU, convolution."""
    return owner.conv_out(owner.conv_act(owner.conv_norm_out(hidden)))


class Encoder(vae.Encoder):
    """Images (N, 3, H, W) to latents (N, latent_channels, 16, 16) and features [conv_in, down_0, ..., mid]."""

    def forward(self, sample: Tensor) -> tuple[Tensor, list[Tensor]]:
        stem = self.conv_in(sample)
        features = [stem, *run_blocks(self, [*self.down_blocks, self.mid_block], stem)]
        return project_out(self, features[-1]), features


class Decoder(vae.Decoder):
    """Latents (N, latent_channels, 16, 16) to images and features [conv_in, mid, up_0, ...]."""

    def forward(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.features(latents)
        return project_out(self, features[-1]), features

    def features(self, latents: Tensor, last_level: int | None = None) -> list[Tensor]:
        """The feature list alone, up to index ``last_level``: the later ones cost most, being the largest."""
        stem = self.conv_in(latents)
        blocks = [self.mid_block, *self.up_blocks]
        return [stem, *run_blocks(self, blocks[:last_level], stem)]
