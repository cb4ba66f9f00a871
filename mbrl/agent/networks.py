"""DrQ-v2's networks and its one augmentation. Know pictures and actions; know no losses and no replay.

Shapes: B batch, K frames in a stack, H W pixels, D action dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ENCODER_STRIDES = (2, 1, 1, 1)
ENCODER_CHANNELS = 32
KERNEL = 3
PAD = 4  # pixels: the farthest that a random shift goes


class Encoder(nn.Module):
    """Encoder of stacks (B, 3 K, H, W), uint8 in 0..255, to features (B, num_features)."""

    def __init__(self, num_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        height, width = image_size
        for stride in ENCODER_STRIDES:
            layers += [nn.Conv2d(num_channels, ENCODER_CHANNELS, KERNEL, stride), nn.ReLU(inplace=True)]
            num_channels = ENCODER_CHANNELS
            height, width = ((side - KERNEL) // stride + 1 for side in (height, width))
        self.convolutions = nn.Sequential(*layers)
        self.num_features = num_channels * height * width

    def forward(self, stacks: Tensor) -> Tensor:
        assert stacks.dtype == torch.uint8
        # Channels last: 1.4 times as fast on a CPU, and what tensor cores want.
        pixels = stacks.to(torch.float32, memory_format=torch.channels_last).div_(255).sub_(0.5)
        return self.convolutions(pixels).permute(0, 2, 3, 1).flatten(1)  # in the order of memory: no copy


def trunk(num_features: int, feature_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_features, feature_dim), nn.LayerNorm(feature_dim), nn.Tanh())


def two_hidden_layers(num_in: int, hidden_dim: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_in, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, num_out),
    )


class Actor(nn.Module):
    """Actor from features (B, num_features) to mean actions (B, D) in [-1, 1]."""

    def __init__(self, num_features: int, action_dim: int, feature_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.trunk = trunk(num_features, feature_dim)
        self.action_dim = action_dim
        self.policy = two_hidden_layers(feature_dim, hidden_dim, action_dim)

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(self.policy(self.trunk(features)))


class TwinCritic(nn.Module):
    """Two critics of features (B, num_features) and actions (B, D): estimates (2, B) of their value."""

    def __init__(self, num_features: int, action_dim: int, feature_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.trunk = trunk(num_features, feature_dim)
        self.heads = nn.ModuleList(two_hidden_layers(feature_dim + action_dim, hidden_dim, 1) for _ in range(2))

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        joined = torch.cat([self.trunk(features), action], dim=1)
        return torch.stack([head(joined).squeeze(1) for head in self.heads])


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Initialise with orthogonal weights and zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain = math.sqrt(2) if isinstance(module, nn.Conv2d) else 1.0
            nn.init.orthogonal_(module.weight, gain, generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def random_shifts(num_stacks: int, generator: torch.Generator) -> Tensor:
    """Sample shifts (2, B, 1) of up to PAD pixels, vertical and horizontal, one for all channels of a stack."""
    size = (2, num_stacks, 1)
    return torch.randint(2 * PAD + 1, size, generator=generator, device=generator.device) - PAD


def shifted(stacks: Tensor, shifts: Tensor) -> Tensor:
    """Move each stack of (B, C, H, W) by its shift, repeating its border.

    Shifts are whole pixels: the bilinear interpolation of the published augmentation falls on pixel centres and changes
    nothing, so that pixels can stay 8-bit and are only looked up.
    """
    num_stacks, channels, height, width = stacks.shape
    rows = (torch.arange(height, device=stacks.device) + shifts[0]).clamp_(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=stacks.device) + shifts[1]).clamp_(0, width - 1)
    firsts = height * width * torch.arange(num_stacks, device=stacks.device)
    sources = firsts[:, None, None] + rows[:, :, None] * width + columns[:, None, :]  # (B, H, W)
    # Channels last, as the encoder wants them: a pixel is then moved as a whole, three times as fast on a CPU.
    pixels = stacks.permute(0, 2, 3, 1).reshape(-1, channels)
    return pixels.index_select(0, sources.flatten()).view(num_stacks, height, width, channels).permute(0, 3, 1, 2)


def noisy(mean: Tensor, noise: Tensor, clip: float | None) -> Tensor:
    """Return ``mean`` plus ``noise`` (clipped first, if asked for) inside [-1, 1]; gradients ignore the bounds."""
    action = mean + (noise if clip is None else noise.clamp(-clip, clip))
    bounded = action.clamp(-1 + 1e-6, 1 - 1e-6)
    return action + (bounded - action).detach()
