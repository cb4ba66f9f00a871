"""Batches of the transformer: tokens to train on, and a few clips to look at.

Dimension keys: B clips, T frames, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from ivideogpt.data.clips.batches import ClipBatch
from ivideogpt.data.tokens.token_store import TokenBatch
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.world_model import symlog


@dataclass(frozen=True)
class PixelSource:
    """Source of clips as pixels, which a frozen tokenizer encodes in eval mode.

    It reads them in float32 whatever the run's precision: of bfloat16's tokens of context frames one in 27 is another
    one than sessions, evaluation and token stores see.
    """

    tokenizer: CompressiveVQModel

    @torch.no_grad()
    def tokens(self, batch: ClipBatch) -> TokenBatch:
        with torch.autocast(batch.frames.device.type, enabled=False):
            tokens, _ = self.tokenizer.tokenize(batch.frames, self.tokenizer.context_length)
        return TokenBatch(tokens, batch.actions, batch.rewards, batch.successes)

    def clips(self, batch: ClipBatch, num_clips: int | None = None) -> ClipBatch:
        return ClipBatch(batch.frames[:num_clips], None if batch.actions is None else batch.actions[:num_clips])


@dataclass(frozen=True)
class TokenSource:
    """Source of stored tokens, whose frames the tokenizer decodes."""

    tokenizer: CompressiveVQModel

    def tokens(self, batch: TokenBatch) -> TokenBatch:
        return batch

    @torch.no_grad()
    def clips(self, batch: TokenBatch, num_clips: int | None = None) -> ClipBatch:
        frames = self.tokenizer.detokenize(batch.tokens[:num_clips], self.tokenizer.context_length)
        return ClipBatch(frames.clamp(0, 1), None if batch.actions is None else batch.actions[:num_clips])


Source: TypeAlias = PixelSource | TokenSource


@dataclass(frozen=True)
class Conditioning:
    """Selection of the parts of a batch that the model is given, and the space of its rewards."""

    actions: bool
    rewards: bool
    symlog: bool
    successes: bool = False

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        rewards = batch.rewards if self.rewards else None
        if rewards is not None and self.symlog:
            rewards = symlog(rewards)
        return replace(
            batch,
            actions=batch.actions if self.actions else None,
            rewards=rewards,
            successes=batch.successes if self.successes else None,
        )
