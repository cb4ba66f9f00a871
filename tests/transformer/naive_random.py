"""The draws of `ivideogpt.transformer.sampling`, one Python integer at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ivideogpt.transformer import Sampling

BITS = 2**64 - 1


def split_mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & BITS
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & BITS
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & BITS
    return x ^ (x >> 31)


class NaiveRandom:
    """What the rows of a session draw: clips with these numbers, in order, with all their samples."""

    def __init__(self, seed: int, clips: Sequence[int] = (0, 1), num_samples: int = 1) -> None:
        of_clips = [split_mix(split_mix(seed) + clip) for clip in clips]
        self.keys = [split_mix(of_clip + sample) for of_clip in of_clips for sample in range(num_samples)]
        self.num_draws = 0

    def token(self, logits: Tensor, sampling: Sampling) -> Tensor:
        """One id a row from logits (B, V)."""
        rows = [self._token_of(key, row, sampling) for key, row in zip(self.keys, logits.double(), strict=True)]
        self.num_draws += 1
        return torch.tensor(rows)

    def _token_of(self, key: int, logits: Tensor, sampling: Sampling) -> int:
        if sampling.greedy:
            return int(logits.argmax())
        values, ids = (logits / sampling.temperature).topk(sampling.top_k or len(logits))
        draw = split_mix(key + self.num_draws)
        noisy = {id_: value + gumbel(draw ^ id_) for value, id_ in zip(values.tolist(), ids.tolist(), strict=True)}
        return max(noisy, key=noisy.__getitem__)


def gumbel(x: int) -> float:
    uniform = ((split_mix(x) >> 41) + 0.5) / 2**23
    return -math.log(-math.log(uniform))
