"""Convolutional blocks of the tokenizer, with the names, shapes and numbers of the ``diffusers`` blocks they replace.

Own code, because importing them from diffusers takes as long as importing torch. Tests compare the two.

Dimension keys: N images, C channels, H W pixels of the level at hand.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

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


def activation(name: str) -> nn.Module:
    """Return the activation that a config calls ``name``."""
    if name.lower() not in ACTIVATIONS:
        raise UserError(f"act_fn is {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name.lower()]()


class ResnetBlock2D(nn.Module):
    """Two normalised convolutions added to the input, which a 1 x 1 convolution widens where channels change."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, act_fn: str) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=EPSILON)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=EPSILON)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = activation(act_fn)
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


class DownEncoderBlock2D(nn.Module):
    """Residual blocks, then half the resolution."""

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, groups: int, act_fn: str, downsample: bool
    ) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, num_layers, groups, act_fn)
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels)]) if downsample else None

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in (*self.resnets, *(self.downsamplers or ())):
            hidden = layer(hidden)
        return hidden


class UpDecoderBlock2D(nn.Module):
    """Residual blocks, then twice the resolution."""

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, groups: int, act_fn: str, upsample: bool
    ) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, num_layers, groups, act_fn)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)]) if upsample else None

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in (*self.resnets, *(self.upsamplers or ())):
            hidden = layer(hidden)
        return hidden


def _resnets(in_channels: int, out_channels: int, num_layers: int, groups: int, act_fn: str) -> nn.ModuleList:
    widths = [in_channels] + [out_channels] * (num_layers - 1)
    return nn.ModuleList(ResnetBlock2D(width, out_channels, groups, act_fn) for width in widths)


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
