"""Nearest-code lookup in float32, whatever precision the networks around it run in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ivideogpt.precision import full_float32


class Quantized(NamedTuple):
    """``latents`` (..., d): codes' vectors with a straight-through gradient; ``codes`` (...) int64; scalar ``loss``."""

    latents: Tensor
    codes: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """A codebook that replaces channel-last latents by the nearest of its ``num_codes`` vectors.

    In bfloat16 the search returns other codes than the model was trained with, so autocast is left for its duration.
    """

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, dim)
        self.embedding.weight.data.uniform_(-1 / num_codes, 1 / num_codes)

    def nearest_codes(self, latents: Tensor) -> Tensor:
        """Return the index of the nearest code by Euclidean distance for latents (..., d): (...) int64."""
        with torch.autocast(latents.device.type, enabled=False), torch.no_grad():
            vectors = latents.reshape(-1, latents.shape[-1]).float()
            with full_float32():
                distances = torch.cdist(vectors, self.embedding.weight.float())
            return distances.argmin(dim=1).view(latents.shape[:-1])

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize (..., d). The loss is codebook term + commitment term, both means over elements."""
        latents = latents.float()
        codes = self.nearest_codes(latents)
        vectors = self.embedding(codes).float()
        loss = torch.mean((vectors.detach() - latents) ** 2) + torch.mean((vectors - latents.detach()) ** 2)
        return Quantized(latents + (vectors - latents).detach(), codes, loss)


def code_usage(counts: Tensor) -> dict[str, float]:
    """Return the share of codes that occur in code counts, and their perplexity.

    Perplexity is the number of equally frequent codes that would be as hard to guess.
    """
    counts = counts.cpu()  # not every accelerator has float64
    shares = counts.double() / counts.sum()
    return {
        "usage": (counts > 0).double().mean().item(),
        "perplexity": torch.special.entr(shares).sum().exp().item(),
    }
