"""How the next token is drawn from logits. Knows no network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ivideogpt.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Generation options.

    Attributes:
        temperature: divides the logits.
        top_k: keep that many of the likeliest ids; ``None`` keeps all.
        greedy: take the likeliest id; temperature and top-k play no part then.
        separators: "forced" appends the separator after every frame; "sampled" draws it like any token, as the released
            action-free generation did.
        dynamics_only: restrict frame positions to ids of the dynamics codebook.
    """

    temperature: float = 1.0
    top_k: int | None = 100
    greedy: bool = False
    separators: Literal["forced", "sampled"] = "forced"
    dynamics_only: bool = False

    @property
    def is_deterministic(self) -> bool:
        """Are all samples of a context the same?"""
        return self.greedy or self.top_k == 1

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(
                f"temperature is {self.temperature}, must be positive; for the likeliest tokens use greedy=True"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}, must be at least 1, or None to keep all ids")
        if self.separators not in ("forced", "sampled"):
            raise UserError(f"separators is {self.separators!r}, must be 'forced' or 'sampled'")


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """One id a row, (B,) int64, from logits (B, V). Temperature first, then top-k. Never waits for the device."""
    if sampling.greedy:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    if sampling.top_k is None or sampling.top_k >= logits.shape[-1]:
        return _draw(logits, generator)
    likeliest, ids = logits.topk(sampling.top_k, dim=-1)
    return ids.gather(-1, _draw(likeliest, generator)[:, None]).squeeze(-1)


def _draw(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """A race of exponential clocks, as in ``torch.multinomial``, which would wait for the device to check its input."""
    clocks = torch.empty_like(logits).exponential_(generator=generator)
    return (logits.softmax(-1) / clocks).argmax(-1)
