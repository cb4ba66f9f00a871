"""Drawing one frame of tokens, independent of the backend that runs the passes.

Knows tokens, embeddings and logits; knows no cache.

Shapes: B rows, n positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ivideogpt.layout import TokenLayout
from ivideogpt.transformer.sampling import Sampling, expected_codes

if TYPE_CHECKING:
    from ivideogpt.transformer.backends.base import DecodeBackend


@dataclass(frozen=True)
class DecodedFrame:
    """``tokens`` (B, 17): the separator in front of a frame and the frame's ids, as drawn. ``reward`` (B,) or None."""

    tokens: Tensor
    reward: Tensor | None


@dataclass(frozen=True)
class FrameModel:
    """The networks, the token layout and the sampling options that draw frames.

    With forced separators a frame costs sixteen passes: its last token enters together with the next separator. With
    a reward head that token enters at the end of its own frame, the seventeenth pass, so that the reward comes with
    its frame. With sampled separators it enters alone, to draw the next one: seventeen, but for the first frame.

    Attributes:
        dynamics_vectors: (dynamics codes, d) the code vectors of the tokenizer, for ``rule="expected_code"``.
    """

    backend: DecodeBackend
    layout: TokenLayout
    sampling: Sampling
    reward_head: nn.Linear | None = None
    dynamics_vectors: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert self.sampling.rule == "sample" or self.dynamics_vectors is not None, "expected codes need code vectors"

    @property
    def leaves_last_token(self) -> bool:
        """Whether a frame's last token enters the cache only with or after the next separator."""
        return self.reward_head is None

    @property
    def joins_last_token(self) -> bool:
        """Whether a frame's last token and the next separator enter in one pass."""
        return self.leaves_last_token and self.sampling.separators == "forced"

    def draw_frame(
        self, forward: Callable[[Tensor], Tensor], entering: Tensor, action: Tensor | None, draws: Tensor
    ) -> DecodedFrame:
        """Draw one frame of every row.

        Args:
            forward: embeddings (B, n, D) of the next positions to hidden states.
            entering: (B, n) ids that enter first; the last is the separator.
            action: (B, D), added to the separator's embedding, or None.
            draws: (16, B) what tells the draws apart, see :class:`RandomStreams`.
        """
        embeddings = self.backend.weights.embed(entering)
        if action is not None:
            embeddings = torch.cat([embeddings[:, :-1], embeddings[:, -1:] + action[:, None].to(embeddings)], dim=1)
        tokens = [entering[:, -1]]
        for draw in draws:
            tokens.append(self._draw_dynamics(forward(embeddings)[:, -1], draw))
            embeddings = self.backend.weights.embed(tokens[-1][:, None])
        reward = None
        if self.reward_head is not None:
            hidden = forward(embeddings)[:, -1].to(self.reward_head.weight.dtype)
            reward = self.reward_head(hidden).squeeze(-1).float()
        return DecodedFrame(torch.stack(tokens, dim=1), reward)

    def draw_separator(self, hidden: Tensor, draw: Tensor) -> Tensor:
        return self.backend.sample(self.backend.logits(hidden), self.sampling, draw)

    def _draw_dynamics(self, hidden: Tensor, draw: Tensor) -> Tensor:
        logits = self.backend.logits(hidden)
        first, end = self.layout.context_codes, self.layout.frame_separator
        if self.sampling.rule == "expected_code":
            assert self.dynamics_vectors is not None
            return first + expected_codes(logits[:, first:end] / self.sampling.temperature, self.dynamics_vectors)
        if not self.sampling.dynamics_only:
            return self.backend.sample(logits, self.sampling, draw)
        return first + self.backend.sample(logits[:, first:end], self.sampling, draw)
