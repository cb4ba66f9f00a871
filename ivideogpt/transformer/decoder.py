"""One frame of tokens at a time, on top of a :class:`~ivideogpt.transformer.backends.base.DecodeBackend`.

Knows tokens, embeddings and the cache; knows no pixels and no actions (they arrive as embeddings).

Rungs, each usable alone: :func:`~ivideogpt.transformer.sampling.sample` -> ``DecodeBackend.forward`` (one pass) ->
``FrameModel.draw_frame`` -> ``FrameDecoder.step`` (one frame of every row) -> ``FrameDecoder.rollout`` (many frames).

Shapes: B rows (samples of one prompt are adjacent rows), n positions, D width, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ivideogpt.errors import UserError
from ivideogpt.layout import TokenLayout
from ivideogpt.transformer.llama import KVCache
from ivideogpt.transformer.sampling import RandomStreams, Sampling, expected_codes

if TYPE_CHECKING:
    from ivideogpt.transformer.backends.base import DecodeBackend
    from ivideogpt.transformer.backends.cuda_graph import CudaGraphFrame


@dataclass(frozen=True)
class DecodedFrame:
    """``tokens`` (B, 17): the separator in front of a frame and the frame's ids, as drawn.

    ``reward`` and ``success``, a logit, are (B,), or None without their head.
    """

    tokens: Tensor
    reward: Tensor | None
    success: Tensor | None = None


@dataclass(frozen=True)
class FrameModel:
    """The networks, the token layout and the sampling options that draw frames.

    With forced separators a frame costs sixteen passes: its last token enters together with the next separator. With
    a head that token enters at the end of its own frame, the seventeenth pass, so that the reward comes with its frame.
    With sampled separators it enters alone, to draw the next one: seventeen, but for the first frame.

    Attributes:
        dynamics_vectors: (dynamics codes, d) the code vectors of the tokenizer, for ``rule="expected_code"``.
    """

    backend: DecodeBackend
    layout: TokenLayout
    sampling: Sampling
    reward_head: nn.Linear | None = None
    dynamics_vectors: Tensor | None = field(default=None, compare=False)
    success_head: nn.Linear | None = None

    def __post_init__(self) -> None:
        assert self.sampling.rule == "sample" or self.dynamics_vectors is not None, "expected codes need code vectors"

    @property
    def leaves_last_token(self) -> bool:
        """Whether a frame's last token enters the cache only with or after the next separator."""
        return self.reward_head is None and self.success_head is None

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
        hidden = None if self.leaves_last_token else forward(embeddings)[:, -1]
        reward, success = (_read_head(head, hidden) for head in (self.reward_head, self.success_head))
        return DecodedFrame(torch.stack(tokens, dim=1), reward, success)

    def _draw_dynamics(self, hidden: Tensor, draw: Tensor) -> Tensor:
        logits = self.backend.logits(hidden)
        first, end = self.layout.context_codes, self.layout.frame_separator
        if self.sampling.rule == "expected_code":
            assert self.dynamics_vectors is not None
            return first + expected_codes(logits[:, first:end] / self.sampling.temperature, self.dynamics_vectors)
        if not self.sampling.dynamics_only:
            return self.backend.sample(logits, self.sampling, draw)
        return first + self.backend.sample(logits[:, first:end], self.sampling, draw)


def _read_head(head: nn.Linear | None, hidden: Tensor | None) -> Tensor | None:
    """Apply a head to hidden states (B, D), in the head's precision: (B,) float32."""
    return None if head is None or hidden is None else head(hidden.to(head.weight.dtype)).squeeze(-1).float()


@dataclass(frozen=True)
class DecoderMark:
    """A point in a rollout, for :meth:`FrameDecoder.rewind`: what is in the cache up to there stays there."""

    past: tuple[object, ...]
    lengths: tuple[int, ...]
    num_draws: int
    pending: Tensor | None


@dataclass(frozen=True)
class DecodedFrames:
    """``tokens`` (B, 17 F): the ids after the prompt, the first separator included. ``rewards`` (B, F) or None."""

    tokens: Tensor
    rewards: Tensor | None


class FrameDecoder:
    """Draws future frames, one :meth:`step` each, after one :meth:`prefill`. Owns the cache of one rollout.

    Rows keep step with one another, but may stand at different places: see :meth:`reset_rows`.

    Args:
        streams: what each row draws.
    """

    def __init__(self, model: FrameModel, streams: RandomStreams) -> None:
        self.model = model
        self.backend = model.backend
        self.device = model.backend.weights.device
        self.streams = streams.to(self.device)
        self._buffers: CudaGraphFrame | None = None
        self._may_borrow = True
        self._give_back: weakref.finalize | None = None
        self.cache = self.backend.new_cache(0, 0)
        self._num_draws = 0
        self._pending: Tensor | None = None  # (B, 1) the ids that have not entered the cache yet
        self._past = [object()]  # for what was read, and for each frame since: marks with another past are of no use

    @property
    def frames_that_fit(self) -> int:
        """Number of frames that the cache holds after a prompt."""
        return self.model.layout.future_frames_that_fit(self.cache.capacity)

    @property
    def frames_left(self) -> int:
        """Number of further frames that fit into every row."""
        return self.frames_that_fit - max(self._frames_drawn(), default=0)

    def full_rows(self) -> Tensor:
        """Return the indices of the rows into which no other frame fits."""
        full = [row for row, drawn in enumerate(self._frames_drawn()) if drawn >= self.frames_that_fit]
        return torch.tensor(full, dtype=torch.int64)

    @torch.no_grad()
    def prefill(self, prompts: Tensor, max_frames: int | None = None) -> None:
        """Read prompts (B, 257 t), one a row, all but the separator at their end, which enters with the first frame.

        ``max_frames`` bounds the memory of the cache; by default it reaches to the model's last position.

        Raises:
            UserError: the model has no positions for the prompt and one frame.
        """
        layout = self.model.layout
        assert prompts.shape[1] == layout.prompt_length
        capacity = self.backend.weights.num_positions
        if layout.future_frames_that_fit(capacity) < 1:
            raise UserError(
                f"not one frame fits after {layout.context_frames} context frames into {capacity} positions; "
                "the transformer needs more max_position_embeddings or less context"
            )
        if max_frames is not None:
            capacity = min(capacity, layout.with_future_frames(max_frames).sequence_length)
        self._leave_buffers()
        self._past = [object()]
        self.cache = self.backend.new_cache(len(prompts), capacity)
        self._pending = self._read(prompts, self.cache)

    def expand(self, n: int) -> None:
        """Continue every row n times; the copies become adjacent rows. ``streams`` are those of all rows already."""
        self.cache = self.cache.expand(n)
        self._past = [object()]
        self._leave_buffers()
        if self._pending is not None:
            self._pending = self._pending.repeat_interleave(n, dim=0)

    @torch.no_grad()
    def reset_rows(self, rows: Tensor, prompts: Tensor, streams: RandomStreams | None = None) -> None:
        """Begin some rows again. All samples of a prompt must be among them.

        Args:
            prompts: (len(rows) / n, 257 t); n adjacent rows begin with the same one.
            streams: what these rows draw from now on, from its beginning; by default they go on with their own.

        Raises:
            UserError: see :meth:`check_reset`.
        """
        self.check_reset()
        num_samples = len(rows) // len(prompts)
        self._past = [object()]
        cache = self.backend.new_cache(len(prompts), self.model.layout.prompt_length)
        pending = self._read(prompts, cache)
        self.cache.overwrite(rows, cache)
        if pending is not None:
            assert self._pending is not None
            pending = pending.repeat_interleave(num_samples, dim=0)
            self._pending = self._pending.index_copy(0, rows.to(pending.device), pending)
        if streams is not None:
            restarting = streams.to(self.device)
            self.streams = self.streams.restarted(rows.to(self.device), restarting, self._num_draws)
        self._place_in_buffers()

    def check_reset(self) -> None:
        """Make sure that single rows may begin again.

        Raises:
            UserError: separators are sampled, so that a row's first frame takes another number of passes.
        """
        if self.model.sampling.separators == "sampled":
            raise UserError("single rows cannot restart with separators='sampled': use separators='forced'")

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all other rows. Samples of one prompt must stay or go together."""
        self.cache = self.cache.select(rows)
        self._past = [object()]
        self._leave_buffers()
        self.streams = RandomStreams(self.streams.keys[rows])
        if self._pending is not None:
            self._pending = self._pending[rows]

    def mark(self) -> DecoderMark:
        """Mark this point of the rollout, to come back to it with :meth:`rewind`."""
        pending = None if self._pending is None else self._pending.clone()
        return DecoderMark(tuple(self._past), tuple(self.cache.lengths), self._num_draws, pending)

    def can_rewind(self, mark: DecoderMark) -> bool:
        """Whether the cache holds the past of a mark: since then no prompt was read, no row dropped, no mark before it
        gone back to."""
        return tuple(self._past[: len(mark.past)]) == mark.past

    @torch.no_grad()
    def rewind(self, mark: DecoderMark) -> None:
        """Go back to a mark: the same actions give the same tokens again. Marks made later end."""
        assert self.can_rewind(mark)
        self._past = list(mark.past)
        self.cache.lengths, self._num_draws = list(mark.lengths), mark.num_draws
        self._pending = None if mark.pending is None else mark.pending.clone()
        self._place_in_buffers()

    @torch.no_grad()
    def step(self, action_embedding: Tensor | None = None) -> DecodedFrame:
        """Draw one frame. ``action_embedding`` (B, D) is added to the embedding of the separator in front of it."""
        assert len(self.streams.keys) == self.cache.num_rows, "every row needs a stream"
        self._past.append(object())
        if self._may_borrow and self._buffers is None:
            self._enter_buffers()
        if self._buffers is None:
            return self._step(action_embedding)
        frame = self._buffers.draw(action_embedding, self.cache.num_rows)
        self._num_draws += self.model.layout.dynamics_tokens
        self.cache.advance(self.model.layout.step_length)
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

    def _frames_drawn(self) -> list[int]:
        """Return the number of frames that each row has drawn since its prompt."""
        layout = self.model.layout
        return [(length - layout.prompt_length + 2) // layout.step_length for length in self.cache.lengths]

    def _step(self, action_embedding: Tensor | None) -> DecodedFrame:
        entering = self._next_separator()[:, None]
        if self._pending is not None:
            entering = torch.cat([self._pending, entering], dim=1)
        draws = self._draws(self.model.layout.dynamics_tokens)
        frame = self.model.draw_frame(self._forward, entering, action_embedding, draws)
        # a copy: the frame is the caller's, who may write to it
        self._pending = frame.tokens[:, -1:].clone() if self.model.leaves_last_token else None
        return frame

    def _enter_buffers(self) -> None:
        """Continue in the backend's buffers, if it has some. ``cache`` and ``_pending`` are views of them then."""
        buffers = self.backend.borrow_buffers(self.model, self.cache.num_rows, self.cache.capacity)
        if buffers is None:
            self._may_borrow = False
            return
        self.cache = buffers.load(self.cache)
        self._buffers, self._give_back = buffers, weakref.finalize(self, self.backend.give_back, buffers)
        self._place_in_buffers()

    def _place_in_buffers(self) -> None:
        if self._buffers is not None:
            self._pending = self._buffers.place(self.cache, self.streams, self._pending, self._num_draws)

    def _leave_buffers(self) -> None:
        """Give the buffers back: they may serve another session from now on."""
        if self._buffers is None or self._give_back is None:
            return
        if self._pending is not None:
            self._pending = self._pending.clone()
        self._give_back()
        self._buffers = self._give_back = None

    def _forward(self, embeddings: Tensor) -> Tensor:
        return self.backend.forward(embeddings, self.cache)

    def _draws(self, count: int) -> Tensor:
        draws = self.streams.draws(self._num_draws, count)
        self._num_draws += count
        return draws

    def _read(self, prompts: Tensor, cache: KVCache) -> Tensor | None:
        """Fill a cache with prompts. Returns each one's last token if it enters together with the first separator."""
        waiting = 1 if self.model.joins_last_token else 0
        read = prompts[:, : -1 - waiting]
        self.backend.forward(self.backend.weights.embed(read), cache)
        return prompts[:, read.shape[1] : -1] if waiting else None

    def _next_separator(self) -> Tensor:
        """Return the id in front of the next frame, (B,). The first one belongs to the prompt and is never drawn."""
        if self.model.joins_last_token or self._pending is None:
            separator = self.model.layout.future_separator
            return torch.full((self.cache.num_rows,), separator, device=self.device)
        hidden = self._forward(self.backend.weights.embed(self._pending))[:, -1]
        self._pending = None
        return self.backend.sample(self.backend.logits(hidden), self.model.sampling, self._draws(1)[0])
