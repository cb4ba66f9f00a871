"""Patch discriminator of the tokenizer's GAN loss. Sees single frames; knows nothing of the tokenizer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from ivideogpt.vq_model.strict_model import StrictModel, register_to_config


class Discriminator(StrictModel):
    """Frames (N, 3, H, W) to a map of logits (N, 1, H / 2^depth, W / 2^depth), positive for real.

    Spectral-norm strided convolutions, the first without norm, the others with parameter-free InstanceNorm
    (hinge GAN as in VQGAN, Esser et al. 2021). Saved and loaded as the tokenizer is.

    Args:
        hidden_channels: the most that a convolution has.
        depth: number of strided convolutions. The training script's default is 4.
    """

    kind = "discriminator"

    @register_to_config
    def __init__(self, *, in_channels: int = 3, hidden_channels: int = 512, depth: int = 6) -> None:
        super().__init__()
        channels = hidden_channels // 2 ** max(depth - 3, 3)
        layers: list[nn.Module] = [_strided_conv(in_channels, channels), nn.LeakyReLU(0.2)]
        for _ in range(depth - 1):
            wider = min(channels * 2, hidden_channels)
            layers += [_strided_conv(channels, wider), nn.InstanceNorm2d(wider), nn.LeakyReLU(0.2)]
            channels = wider
        self.encoder = nn.Sequential(*layers)
        self.shuffle = nn.Conv2d(channels, 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        return self.shuffle(self.encoder(frames))


def _strided_conv(in_channels: int, out_channels: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1))
