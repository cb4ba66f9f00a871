"""One frame of tokens at a time, on top of :class:`~ivideogpt.transformer.llama.CachedLlama`.

Knows tokens, embeddings and the cache; knows no pixels and no actions (they arrive as embeddings).

Rungs, each usable alone: :func:`~ivideogpt.transformer.sampling.sample` -> ``CachedLlama.forward`` (one pass) ->
:func:`draw_frame` -> ``FrameDecoder.step`` (one frame of every row) -> ``FrameDecoder.rollout`` (many frames).

Shapes: B rows (samples of one prompt are adjacent rows), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ivideogpt.errors import UserError
from ivideogpt.layout import TokenLayout
from ivideogpt.transformer.llama import CachedLlama, KVCache
from ivideogpt.transformer.sampling import RandomStreams, Sampling, sample


@dataclass(frozen=True)
class DecodedFrame:
    """``tokens`` (B, 17): the separator in front of a frame and the frame's ids, as drawn. ``reward`` (B,) or None."""

    tokens: Tensor
    reward: Tensor | None


@dataclass(frozen=True)
class DecodedFrames:
    """``tokens`` (B, 17 F): the ids after the prompt, the first separator included. ``rewards`` (B, F) or None."""

    tokens: Tensor
    rewards: Tensor | None


@dataclass(frozen=True)
class FrameModel:
    """What draws frames: networks, where tokens stand, and how they are drawn.

    With forced separators a frame costs sixteen passes: its last token enters together with the next separator. With
    a reward head that token enters at the end of its own frame, the seventeenth pass, so that the reward comes with
    its frame. With sampled separators it enters alone, to draw the next one: seventeen, but for the first frame.
    """

    llama: CachedLlama
    layout: TokenLayout
    sampling: Sampling
    reward_head: nn.Linear | None = None

    @property
    def leaves_last_token(self) -> bool:
        """Does a frame's last token wait for the next separator?"""
        return self.reward_head is None

    @property
    def joins_last_token(self) -> bool:
        """Do they enter in one pass?"""
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
        embeddings = self.llama.embed(entering)
        if action is not None:
            embeddings = torch.cat([embeddings[:, :-1], embeddings[:, -1:] + action[:, None].to(embeddings)], dim=1)
        tokens = [entering[:, -1]]
        for draw in draws:
            tokens.append(self._draw_dynamics(forward(embeddings)[:, -1], draw))
            embeddings = self.llama.embed(tokens[-1][:, None])
        reward = None
        if self.reward_head is not None:
            hidden = forward(embeddings)[:, -1].to(self.reward_head.weight.dtype)
            reward = self.reward_head(hidden).squeeze(-1).float()
        return DecodedFrame(torch.stack(tokens, dim=1), reward)

    def draw_separator(self, hidden: Tensor, draw: Tensor) -> Tensor:
        return sample(self.llama.logits(hidden), self.sampling, draw)

    def _draw_dynamics(self, hidden: Tensor, draw: Tensor) -> Tensor:
        logits = self.llama.logits(hidden)
        if not self.sampling.dynamics_only:
            return sample(logits, self.sampling, draw)
        first, end = self.layout.context_codes, self.layout.frame_separator
        return first + sample(logits[:, first:end], self.sampling, draw)


class FrameDecoder:
    """Draws future frames, one :meth:`step` each, after one :meth:`prefill`. Owns the cache of one rollout.

    Rows keep step with one another, but may stand at different places: see :meth:`reset_rows`.
    """

    def __init__(self, model: FrameModel, streams: RandomStreams) -> None:
        self.model = model
        self.streams = streams.to(model.llama.device)
        self.cache = model.llama.new_cache(0, 0)
        self.frames_drawn: list[int] = []  # of every row since its prompt
        self._num_draws = 0
        self._pending: Tensor | None = None  # (B, 1) the ids that have not entered the cache yet

    @property
    def capacity(self) -> int:
        """Positions of the cache."""
        return self.cache.capacity

    @property
    def frames_that_fit(self) -> int:
        """How many frames the cache holds after a prompt."""
        return self.model.layout.future_frames_that_fit(self.capacity)

    @property
    def frames_left(self) -> int:
        """How many more frames fit into every row."""
        return self.frames_that_fit - max(self.frames_drawn, default=0)

    def full_rows(self) -> Tensor:
        """Indices of the rows into which no other frame fits."""
        return torch.tensor(
            [row for row, drawn in enumerate(self.frames_drawn) if drawn >= self.frames_that_fit]
        ).long()

    @torch.no_grad()
    def prefill(self, prompts: Tensor, max_frames: int | None = None) -> None:
        """Read prompts (B, 257 t), one a row, all but the separator at their end, which enters with the first frame.

        ``max_frames`` bounds the memory of the cache; by default it reaches to the model's last position.

        Raises:
            UserError: the model has no positions for the prompt and one frame.
        """
        layout = self.model.layout
        assert prompts.shape[1] == layout.prompt_length
        capacity = self.model.llama.num_positions
        if layout.future_frames_that_fit(capacity) < 1:
            raise UserError(
                f"not one frame fits after {layout.context_frames} context frames into {capacity} positions; "
                "the transformer needs more max_position_embeddings or less context"
            )
        if max_frames is not None:
            capacity = min(capacity, layout.with_future_frames(max_frames).sequence_length)
        self.cache = self.model.llama.new_cache(len(prompts), capacity)
        self._pending = self._read(prompts, self.cache)
        self.frames_drawn = [0] * len(prompts)

    def expand(self, n: int) -> None:
        """Continue every row n times; the copies become adjacent rows."""
        self.cache = self.cache.expand(n, share=self.model.llama.shares_prompts)
        self.frames_drawn = [drawn for drawn in self.frames_drawn for _ in range(n)]
        if self._pending is not None:
            self._pending = self._pending.repeat_interleave(n, dim=0)

    @torch.no_grad()
    def reset_rows(self, rows: Tensor, prompts: Tensor) -> None:
        """Begin some rows anew from prompts (len(rows), 257 t). All samples of a prompt must be among them.

        Raises:
            UserError: separators are sampled, so that a row's first frame takes another number of passes.
        """
        if self.model.sampling.separators == "sampled":
            raise UserError("rows cannot begin anew one by one with separators='sampled': use 'forced'")
        aside = self.model.llama.new_cache(len(rows), self.model.layout.prompt_length)
        pending = self._read(prompts, aside)
        self.cache.replace(rows, aside)
        if pending is not None:
            assert self._pending is not None
            self._pending = self._pending.index_copy(0, rows.to(pending.device), pending)
        for row in rows.tolist():
            self.frames_drawn[row] = 0

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all other rows. Samples of one prompt must stay or go together."""
        self.cache = self.cache.select(rows)
        self.frames_drawn = [self.frames_drawn[row] for row in rows.tolist()]
        self.streams = RandomStreams(self.streams.keys[rows])
        if self._pending is not None:
            self._pending = self._pending[rows]

    @torch.no_grad()
    def step(self, action_embedding: Tensor | None = None) -> DecodedFrame:
        """Draw one frame. ``action_embedding`` (B, D) is added to the embedding of the separator in front of it."""
        entering = self._next_separator()[:, None]
        if self._pending is not None:
            entering = torch.cat([self._pending, entering], dim=1)
        frame = self.model.draw_frame(
            self._forward, entering, action_embedding, self._draws(self.model.layout.dynamics_tokens)
        )
        self._pending = frame.tokens[:, -1:] if self.model.leaves_last_token else None
        self.frames_drawn = [drawn + 1 for drawn in self.frames_drawn]
        return frame

    def rollout(self, num_frames: int, action_embeddings: Tensor | None = None) -> DecodedFrames:
        """Draw ``num_frames`` frames; ``action_embeddings`` is (B, F, D).

        Raises:
            UserError: there are no positions for so many.
        """
        if num_frames > self.frames_left:
            raise UserError(
                f"{num_frames} frames do not fit, {self.frames_left} do: "
                "the transformer needs more max_position_embeddings, or ask for fewer"
            )
        embeddings = [None] * num_frames if action_embeddings is None else action_embeddings.unbind(1)
        frames = [self.step(embedding) for embedding in embeddings]
        rewards = [frame.reward for frame in frames if frame.reward is not None]
        return DecodedFrames(
            tokens=torch.cat([frame.tokens for frame in frames], dim=1),
            rewards=torch.stack(rewards, dim=1) if rewards else None,
        )

    def _forward(self, embeddings: Tensor) -> Tensor:
        return self.model.llama.forward(embeddings, self.cache)

    def _draws(self, count: int) -> Tensor:
        draws = self.streams.draws(self._num_draws, count)
        self._num_draws += count
        return draws

    def _read(self, prompts: Tensor, cache: KVCache) -> Tensor | None:
        """Fill a cache; the token in front of the first separator waits for it if later ones do. Returns it then."""
        waiting = 1 if self.model.joins_last_token else 0
        read = prompts[:, : -1 - waiting]
        self.model.llama.forward(self.model.llama.embed(read), cache)
        return prompts[:, read.shape[1] : -1] if waiting else None

    def _next_separator(self) -> Tensor:
        """(B,) The id in front of the next frame. The first one belongs to the prompt and is never drawn."""
        if self.model.joins_last_token or self._pending is None:
            separator = self.model.layout.future_separator
            return torch.full((self.cache.num_rows,), separator, device=self.model.llama.device)
        hidden = self._forward(self.model.llama.embed(self._pending))[:, -1]
        self._pending = None
        return self.model.draw_separator(hidden, self._draws(1)[0])
