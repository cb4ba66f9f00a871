"""The plain encoder and decoder of context frames, which also hand out their feature maps.

Dimension keys: N images, C channels, H W pixels of the level at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ivideogpt.errors import UserError
from ivideogpt.vq_model.blocks import EPSILON, DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D


def run_block(owner: Any, block: nn.Module, hidden: Tensor) -> Tensor:
    """Return ``block(hidden)``, recomputed in the backward pass if ``owner`` does gradient checkpointing."""
    if owner.gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, hidden, use_reentrant=False)
    return block(hidden)


def run_blocks(owner: Any, blocks: Iterable[nn.Module], hidden: Tensor) -> list[Tensor]:
    """Return the feature map after each block in turn."""
    features = []
    for block in blocks:
        hidden = run_block(owner, block, hidden)
        features.append(hidden)
    return features


class EncoderBlocks(nn.Module):
    """The layers of an encoder, from ``in_channels`` at full resolution to ``out_channels`` on the latent grid."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        down_block_types: Sequence[str],
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        act_fn: str,
        mid_block_add_attention: bool,
    ) -> None:
        super().__init__()
        _check_block_types(down_block_types, DownEncoderBlock2D.__name__, len(block_out_channels))
        widths = [block_out_channels[0], *block_out_channels]
        last = len(block_out_channels) - 1
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownEncoderBlock2D(widths[i], widths[i + 1], layers_per_block, norm_num_groups, act_fn, downsample=i < last)
            for i in range(last + 1)
        )
        self.mid_block = UNetMidBlock2D(widths[-1], norm_num_groups, act_fn, mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[-1], eps=EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def project_out(self, hidden: Tensor) -> Tensor:
        """Apply norm, SiLU and convolution."""
        return self.conv_out(nn.functional.silu(self.conv_norm_out(hidden)))


class DecoderBlocks(nn.Module):
    """The layers of a decoder, from ``in_channels`` on the latent grid to ``out_channels`` at full resolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        up_block_types: Sequence[str],
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        act_fn: str,
        mid_block_add_attention: bool,
    ) -> None:
        super().__init__()
        _check_block_types(up_block_types, UpDecoderBlock2D.__name__, len(block_out_channels))
        widths = [block_out_channels[-1], *reversed(block_out_channels)]
        last = len(block_out_channels) - 1
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList()  # before the mid block, as in optimizers' states of earlier checkpoints
        self.mid_block = UNetMidBlock2D(widths[0], norm_num_groups, act_fn, mid_block_add_attention)
        self.up_blocks.extend(
            UpDecoderBlock2D(widths[i], widths[i + 1], layers_per_block + 1, norm_num_groups, act_fn, upsample=i < last)
            for i in range(last + 1)
        )
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[-1], eps=EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def project_out(self, hidden: Tensor) -> Tensor:
        """Apply norm, SiLU and convolution."""
        return self.conv_out(nn.functional.silu(self.conv_norm_out(hidden)))


class Encoder(EncoderBlocks):
    """Images (N, 3, H, W) to latents (N, latent_channels, 16, 16) and features [conv_in, down_0, ..., mid]."""

    def forward(self, sample: Tensor) -> tuple[Tensor, list[Tensor]]:
        stem = self.conv_in(sample)
        features = [stem, *run_blocks(self, [*self.down_blocks, self.mid_block], stem)]
        return self.project_out(features[-1]), features


class Decoder(DecoderBlocks):
    """Latents (N, latent_channels, 16, 16) to images and features [conv_in, mid, up_0, ...]."""

    def forward(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.features(latents)
        return self.project_out(features[-1]), features

    def features(self, latents: Tensor, last_level: int | None = None) -> list[Tensor]:
        """Return the feature list up to index ``last_level``: later levels are larger and cost most."""
        stem = self.conv_in(latents)
        blocks = [self.mid_block, *self.up_blocks]
        return [stem, *run_blocks(self, blocks[:last_level], stem)]


def _check_block_types(given: Sequence[str], expected: str, number: int) -> None:
    if list(given) != [expected] * number:
        raise UserError(f"block types are {', '.join(given)}, expected {expected} for each of {number} levels")
