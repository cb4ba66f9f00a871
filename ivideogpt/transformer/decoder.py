"""Token generation: LLaMA's forward with a cache, and one frame of tokens at a time on top of it.

Knows tokens, embeddings and the cache; knows no pixels and no actions (they arrive as embeddings).

Rungs, each usable alone: :func:`~ivideogpt.transformer.sampling.sample` -> ``CachedLlama.forward`` (one pass) ->
``FrameDecoder.step`` (one frame) -> ``FrameDecoder.rollout`` (many frames).

Shapes: B rows (samples of one prompt are adjacent rows), n positions of one pass, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from ivideogpt.errors import UserError
from ivideogpt.layout import TokenLayout
from ivideogpt.transformer.sampling import Sampling, sample


@dataclass
class KVCache:
    """Keys and values of every layer, (layers, B, heads, capacity, head dim); ``length`` positions are filled."""

    keys: Tensor
    values: Tensor
    length: int = 0

    @property
    def num_rows(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def expand(self, n: int) -> KVCache:
        """Every row n times, in a cache of its own."""
        return KVCache(self._repeated(self.keys, n), self._repeated(self.values, n), self.length)

    def _repeated(self, filled: Tensor, n: int) -> Tensor:
        layers, rows, *rest = filled.shape
        with torch.inference_mode(False):  # see CachedLlama
            expanded = filled.new_empty(layers, rows * n, *rest)
        expanded[:, :, :, : self.length] = filled[:, :, :, : self.length].repeat_interleave(n, dim=1)
        return expanded


@dataclass
class _Layer:
    """A layer's weights, with the projections that read the same input joined into one matrix."""

    input_norm: Tensor
    qkv: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class CachedLlama:
    """The forward pass of a Hugging Face LLaMA, in eval mode and with a preallocated cache.

    It reads the module's weights and keeps joined copies of some: after the module has been trained or moved, call
    :meth:`refresh`. It holds no cache, so that one instance serves many rollouts.

    What is written to again is allocated outside inference mode, whatever mode the caller is in: a tensor made inside
    could never be written to outside.
    """

    def __init__(self, llm: LlamaForCausalLM) -> None:
        config = llm.config
        if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
            raise UserError("only LLaMAs without biases and with hidden_act silu can be decoded; see their config")
        self.llm = llm
        self.num_heads: int = config.num_attention_heads
        self.num_key_value_heads: int = config.num_key_value_heads
        self.head_dim: int = config.head_dim
        self.num_positions: int = config.max_position_embeddings
        self.norm_epsilon: float = config.rms_norm_eps
        self.layers: list[_Layer] = []
        self.refresh()

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    @torch.inference_mode(False)
    @torch.no_grad()
    def refresh(self) -> None:
        """Read the module's weights again."""
        model = self.llm.model
        self.embeddings = model.embed_tokens.weight.detach()
        self.final_norm = model.norm.weight.detach()
        self.head = self.llm.lm_head.weight.detach()
        old: list[_Layer | None] = [*self.layers] or [None] * len(model.layers)
        self.layers = [_read_layer(*pair) for pair in zip(model.layers, old, strict=True)]
        positions = torch.arange(self.num_positions, device=self.device)[None]
        cos, sin = model.rotary_emb(self.embeddings, positions)
        self.cos, self.sin = cos[0], sin[0]  # (positions, head dim)

    @torch.inference_mode(False)
    def new_cache(self, batch: int, capacity: int) -> KVCache:
        shape = (len(self.layers), batch, self.num_key_value_heads, capacity, self.head_dim)
        return KVCache(self.embeddings.new_empty(shape), self.embeddings.new_empty(shape))

    def embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embeddings)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head)

    def forward(self, embeddings: Tensor, cache: KVCache) -> Tensor:
        """Append n positions, (B, n, D), to the cache and return their last hidden states after the final norm."""
        start, end = cache.length, cache.length + embeddings.shape[1]
        assert end <= cache.capacity, f"{end} positions in a cache of {cache.capacity}"
        cache.length = end
        mask = _causal_mask(start, end, embeddings.device)
        hidden = embeddings
        for index, layer in enumerate(self.layers):
            keys, values = cache.keys[index], cache.values[index]
            hidden = hidden + self._attend(self._norm(hidden, layer.input_norm), layer, keys, values, start, mask)
            hidden = hidden + _mlp(self._norm(hidden, layer.mlp_norm), layer)
        return self._norm(hidden, self.final_norm)

    def _attend(
        self, x: Tensor, layer: _Layer, keys: Tensor, values: Tensor, start: int, mask: Tensor | None
    ) -> Tensor:
        end = start + x.shape[1]
        heads = rearrange(F.linear(x, layer.qkv), "b n (h d) -> b h n d", d=self.head_dim)
        num_rotated = self.num_heads + self.num_key_value_heads
        rotated = _rotate(heads[:, :num_rotated], self.cos[start:end], self.sin[start:end])
        keys[:, :, start:end] = rotated[:, self.num_heads :]
        values[:, :, start:end] = heads[:, num_rotated:]
        attended = F.scaled_dot_product_attention(
            rotated[:, : self.num_heads],
            keys[:, :, :end],
            values[:, :, :end],
            attn_mask=mask,
            is_causal=mask is None and x.shape[1] > 1,
            enable_gqa=self.num_heads != self.num_key_value_heads,
        )
        return F.linear(rearrange(attended, "b h n d -> b n (h d)"), layer.output)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self.norm_epsilon)


def _read_layer(layer: LlamaDecoderLayer, old: _Layer | None) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=_join([attention.q_proj, attention.k_proj, attention.v_proj], old.qkv if old else None),
        output=_plain_weight(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=_join([mlp.gate_proj, mlp.up_proj], old.gate_up if old else None),
        down=_plain_weight(mlp.down_proj),
    )


def _join(projections: list[nn.Module], old: Tensor | None) -> Tensor:
    """The weights below one another, written into ``old`` if it still fits so that its address stays the same."""
    weights = [_plain_weight(projection) for projection in projections]
    if old is not None and (old.dtype, old.device) == (weights[0].dtype, weights[0].device):
        return torch.cat(weights, out=old)
    return torch.cat(weights)


def _plain_weight(projection: nn.Module) -> Tensor:
    if type(projection) is not nn.Linear:
        raise UserError(f"a {type(projection).__name__} layer cannot be decoded; merge adapters into the model first")
    return projection.weight.detach()


def _causal_mask(start: int, end: int, device: torch.device) -> Tensor | None:
    """True where position start + i may look at position j, (end - start, end); None where sdpa needs no mask."""
    if start == 0 or end - start == 1:
        return None
    return torch.arange(end, device=device) <= torch.arange(start, end, device=device)[:, None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _mlp(x: Tensor, layer: _Layer) -> Tensor:
    gate, up = F.linear(x, layer.gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, layer.down)


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


class FrameDecoder:
    """Draws future frames, one :meth:`step` each, after one :meth:`prefill`. Owns the cache of one rollout.

    With forced separators a frame costs sixteen passes: its last token enters together with the next separator. With
    a reward head that token enters at the end of its own frame, the seventeenth pass, so that the reward comes with
    its frame. With sampled separators it enters alone, to draw the next one: seventeen, but for the first frame.
    """

    def __init__(
        self,
        llama: CachedLlama,
        layout: TokenLayout,
        sampling: Sampling,
        reward_head: nn.Linear | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.llama = llama
        self.layout = layout
        self.sampling = sampling
        self.reward_head = reward_head
        self.generator = generator
        self.cache = llama.new_cache(0, 0)
        self.num_frames = 0
        self._pending: Tensor | None = None  # (B, n) ids that were drawn but have not entered the cache

    @property
    def capacity(self) -> int:
        """Positions of the cache."""
        return self.cache.capacity

    @property
    def frames_left(self) -> int:
        """How many more frames fit into the cache."""
        return self.layout.future_frames_that_fit(self.capacity) - self.num_frames

    @torch.no_grad()
    def prefill(self, prompt: Tensor, max_frames: int | None = None) -> None:
        """Read prompts (B, 257 t), all but the separator at their end, which enters with the first frame.

        ``max_frames`` bounds the memory of the cache; by default it reaches to the model's last position.

        Raises:
            UserError: the model has no positions for the prompt and one frame.
        """
        assert prompt.shape[1] == self.layout.prompt_length
        capacity = self.llama.num_positions
        if self.layout.future_frames_that_fit(capacity) < 1:
            raise UserError(
                f"not one frame fits after {self.layout.context_frames} context frames into {capacity} positions; "
                "the transformer needs more max_position_embeddings or less context"
            )
        if max_frames is not None:
            capacity = min(capacity, self.layout.with_future_frames(max_frames).sequence_length)
        self.cache = self.llama.new_cache(len(prompt), capacity)
        self.llama.forward(self.llama.embed(prompt[:, :-1]), self.cache)
        self.num_frames = 0
        self._pending = None

    def expand(self, n: int) -> None:
        """Continue every row n times; the copies become adjacent rows."""
        self.cache = self.cache.expand(n)
        if self._pending is not None:
            self._pending = self._pending.repeat_interleave(n, dim=0)

    @torch.no_grad()
    def step(self, action_embedding: Tensor | None = None) -> DecodedFrame:
        """Draw one frame. ``action_embedding`` (B, D) is added to the embedding of the separator in front of it."""
        separator = self._next_separator()
        embeddings = self.llama.embed(separator[:, None])
        if action_embedding is not None:
            embeddings = embeddings + action_embedding[:, None]
        if self._pending is not None:
            embeddings = torch.cat([self.llama.embed(self._pending), embeddings], dim=1)
            self._pending = None

        frame: list[Tensor] = []
        for _ in range(self.layout.dynamics_tokens):
            hidden = self.llama.forward(embeddings, self.cache)[:, -1]
            frame.append(self._draw_dynamics(hidden))
            embeddings = self.llama.embed(frame[-1][:, None])
        self._pending = frame[-1][:, None]
        self.num_frames += 1
        return DecodedFrame(tokens=torch.stack([separator, *frame], dim=1), reward=self._reward())

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

    def _next_separator(self) -> Tensor:
        """(B,) The id in front of the next frame. The first one belongs to the prompt and is never drawn."""
        if self.sampling.separators == "forced" or self._pending is None:
            return torch.full((self.cache.num_rows,), self.layout.future_separator, device=self.llama.device)
        hidden = self._enter_pending()
        return sample(self.llama.logits(hidden), self.sampling, self.generator)

    def _enter_pending(self) -> Tensor:
        assert self._pending is not None
        hidden = self.llama.forward(self.llama.embed(self._pending), self.cache)[:, -1]
        self._pending = None
        return hidden

    def _draw_dynamics(self, hidden: Tensor) -> Tensor:
        logits = self.llama.logits(hidden)
        if not self.sampling.dynamics_only:
            return sample(logits, self.sampling, self.generator)
        first, end = self.layout.context_codes, self.layout.frame_separator
        return first + sample(logits[:, first:end], self.sampling, self.generator)

    def _reward(self) -> Tensor | None:
        if self.reward_head is None:
            return None
        return self.reward_head(self._enter_pending()).squeeze(-1).float()
