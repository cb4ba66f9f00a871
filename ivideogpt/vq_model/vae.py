"""The plain encoder and decoder of context frames, which also hand out their feature maps, and their blocks.

Blocks have the names, shapes and numbers of those of ``diffusers``, which takes as long to import as torch. Tests
compare the two.

Dimension keys: N images, C channels, H W pixels of the level at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ivideogpt.errors import UserError

EPSILON = 1e-6
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "swish": nn.SiLU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}
# Nearest-neighbour upsampling of channels-last tensors fails for large batches and for more numbers than an int32
# can count (pytorch/pytorch#81665 and #141831).
LARGE_BATCH, LARGE_NUMEL = 64, 2**30


class ResnetBlock2D(nn.Module):
    """Two normalised convolutions added to the input, which a 1 x 1 convolution widens where channels change."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, act_fn: str) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=EPSILON)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=EPSILON)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if act_fn.lower() not in ACTIVATIONS:
            raise UserError(f"act_fn is {act_fn!r}, expected one of {', '.join(ACTIVATIONS)}")
        self.nonlinearity = ACTIVATIONS[act_fn.lower()]()
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden: Tensor) -> Tensor:
        residual = self.conv1(self.nonlinearity(self.norm1(hidden)))
        residual = self.conv2(self.nonlinearity(self.norm2(residual)))
        if self.conv_shortcut is not None:
            # Contiguous in training, because DDP warns of gradients whose strides differ from their weights'.
            hidden = self.conv_shortcut(hidden.contiguous() if self.training else hidden)
        return hidden + residual


class Downsample2D(nn.Module):
    """Halve the resolution; the zeros that the convolution needs are on the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(F.pad(hidden, (0, 1, 0, 1)))


class Upsample2D(nn.Module):
    """Double the resolution by repeating pixels, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        if len(hidden) >= LARGE_BATCH or hidden.numel() > LARGE_NUMEL:
            hidden = hidden.contiguous()
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class _LevelBlock(nn.Module):
    """Residual blocks; what comes behind them in the module changes the resolution."""

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, groups: int, act_fn: str) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock2D(width, out_channels, groups, act_fn) for width in widths)

    def forward(self, hidden: Tensor) -> Tensor:
        for layers in self.children():
            for layer in cast(nn.ModuleList, layers):
                hidden = layer(hidden)
        return hidden


class DownEncoderBlock2D(_LevelBlock):
    """Residual blocks, then half the resolution."""

    def __init__(self, in_channels: int, out_channels: int, *sizes: Any, downsample: bool) -> None:
        super().__init__(in_channels, out_channels, *sizes)
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels)]) if downsample else None


class UpDecoderBlock2D(_LevelBlock):
    """Residual blocks, then twice the resolution."""

    def __init__(self, in_channels: int, out_channels: int, *sizes: Any, upsample: bool) -> None:
        super().__init__(in_channels, out_channels, *sizes)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)]) if upsample else None


class Attention(nn.Module):
    """Self-attention of all pixels with one head, added to the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=EPSILON)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = self.group_norm(hidden.flatten(2)).transpose(1, 2)  # (N, H W, C)
        queries, keys, values = (project(tokens)[:, None] for project in (self.to_q, self.to_k, self.to_v))
        attended = self.to_out[0](F.scaled_dot_product_attention(queries, keys, values)[:, 0])
        return attended.transpose(1, 2).reshape(hidden.shape) + hidden


class UNetMidBlock2D(nn.Module):
    """Two residual blocks, with self-attention between them if ``add_attention``."""

    def __init__(self, channels: int, groups: int, act_fn: str, add_attention: bool) -> None:
        super().__init__()
        first = ResnetBlock2D(channels, channels, groups, act_fn)
        # Entries are made in this order so that a seed gives the weights that it always gave.
        self.attentions = nn.ModuleList([Attention(channels, groups)] if add_attention else [])
        self.resnets = nn.ModuleList([first, ResnetBlock2D(channels, channels, groups, act_fn)])

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in (self.resnets[0], *self.attentions, self.resnets[1]):
            hidden = layer(hidden)
        return hidden


class AutoencoderBlocks(nn.Module):
    """Base of all encoders and decoders: their last layers, and the way through their blocks."""

    gradient_checkpointing = False

    def add_last_layers(self, width: int, out_channels: int, groups: int) -> None:
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=EPSILON)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def project_out(self, hidden: Tensor) -> Tensor:
        """Apply norm, SiLU and convolution."""
        return self.conv_out(F.silu(self.conv_norm_out(hidden)))

    def run_block(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Return ``block(hidden)``, recomputed in the backward pass with gradient checkpointing."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, hidden, use_reentrant=False)
        return block(hidden)

    def run_blocks(self, blocks: Iterable[nn.Module], hidden: Tensor) -> list[Tensor]:
        """Return the feature map after each block in turn."""
        features = []
        for block in blocks:
            hidden = self.run_block(block, hidden)
            features.append(hidden)
        return features


class EncoderBlocks(AutoencoderBlocks):
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
        self.add_last_layers(widths[-1], out_channels, norm_num_groups)


class DecoderBlocks(AutoencoderBlocks):
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
        self.add_last_layers(widths[-1], out_channels, norm_num_groups)


class Encoder(EncoderBlocks):
    """Images (N, 3, H, W) to latents (N, latent_channels, 16, 16) and features [conv_in, down_0, ..., mid]."""

    def forward(self, sample: Tensor) -> tuple[Tensor, list[Tensor]]:
        stem = self.conv_in(sample)
        features = [stem, *self.run_blocks([*self.down_blocks, self.mid_block], stem)]
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
        return [stem, *self.run_blocks(blocks[:last_level], stem)]


def _check_block_types(given: Sequence[str], expected: str, number: int) -> None:
    if list(given) != [expected] * number:
        raise UserError(f"block types are {', '.join(given)}, expected {expected} for each of {number} levels")
