"""LLaMA's forward pass with a preallocated cache: the same numbers as Hugging Face's, for generation alone.

Knows token embeddings, positions and the cache; knows no layout of tokens.

Shapes: B rows of the cache, n new positions of each, D width, H heads (G of keys and values) of size d, C capacity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.errors import UserError
from ivideogpt.transformer.backends.cpu_kernels import kernels as native
from ivideogpt.transformer.backends.cpu_kernels.kernels import LayerWeights, NativePass
from ivideogpt.transformer.language_model import LlamaForCausalLM


@dataclass
class KVCache:
    """Keys and values of every layer, (layers, B, G, C, d). ``lengths`` says how many positions of each row are filled.

    What is not filled holds finite numbers: attention that is masked still multiplies them. Only compiled passes, which
    read nothing else than what is filled, take memory as it comes (``is_finite`` is False then).

    ``owners`` (B,) int32, if given, are the rows that hold the first ``shared_length`` positions of each row: samples
    of one prompt keep it once.
    """

    keys: Tensor
    values: Tensor
    lengths: list[int]
    owners: Tensor | None = None
    shared_length: int = 0
    is_finite: bool = True

    @property
    def num_rows(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def common_length(self) -> int | None:
        """The length of all rows if it is the same."""
        return self.lengths[0] if len(set(self.lengths)) == 1 else None

    def positions(self, n: int) -> Tensor:
        """Where the next n positions of every row go, (B, n) int64 on the CPU."""
        return torch.tensor(self.lengths, device="cpu")[:, None] + torch.arange(n, device="cpu")

    def advance(self, n: int) -> None:
        self.lengths = [length + n for length in self.lengths]
        assert max(self.lengths) <= self.capacity, f"{max(self.lengths)} positions in a cache of {self.capacity}"

    def expand(self, n: int, share: bool) -> KVCache:
        """Every row n times, in a cache of its own; with ``share`` the copies read what is there from the first."""
        owners, shared, filled = self.owners, self.shared_length, max(self.lengths)
        if owners is None and share:
            owners, shared = torch.arange(self.num_rows, dtype=torch.int32, device="cpu"), min(self.lengths)
        assert owners is None or min(self.lengths) >= shared, "rows that began anew have left what is shared"
        parts = []
        for part in (self.keys, self.values):
            expanded = self._like(part, self.num_rows * n)
            expanded[:, ::n, :, :shared] = part[:, :, :, :shared]
            expanded[:, :, :, shared:filled] = part[:, :, :, shared:filled].repeat_interleave(n, dim=1)
            parts.append(expanded)
        lengths = [length for length in self.lengths for _ in range(n)]
        owners = None if owners is None else owners.repeat_interleave(n) * n
        return KVCache(parts[0], parts[1], lengths, owners, shared, self.is_finite)

    def select(self, rows: Tensor) -> KVCache:
        """Some rows, in a cache of their own. Rows that share a prompt must stay together."""
        lengths = [self.lengths[row] for row in rows.tolist()]
        parts = []
        for part in (self.keys, self.values):
            kept = self._like(part, len(rows))
            kept[:, :, :, : max(self.lengths)] = part[:, rows, :, : max(self.lengths)]
            parts.append(kept)
        if self.owners is None:
            return KVCache(parts[0], parts[1], lengths, is_finite=self.is_finite)
        new_number = torch.full((self.num_rows,), -1, dtype=torch.int32, device="cpu")
        new_number[rows.cpu()] = torch.arange(len(rows), dtype=torch.int32, device="cpu")
        owners = new_number[self.owners[rows.cpu()].long()]
        assert (owners >= 0).all(), "a prompt's owner must stay with the rows that read it"
        return KVCache(parts[0], parts[1], lengths, owners, self.shared_length, self.is_finite)

    def _like(self, part: Tensor, num_rows: int) -> Tensor:
        with torch.inference_mode(False):  # see CachedLlama
            make = part.new_zeros if self.is_finite else part.new_empty
            return make(part.shape[0], num_rows, *part.shape[2:])

    def replace(self, rows: Tensor, other: KVCache) -> None:
        """Overwrite rows by those of a cache whose rows have one length. They read their own memory from then on.

        All rows that read one of these must be among them.
        """
        length = other.lengths[0]
        self.keys[:, rows, :, :length] = other.keys[:, :, :, :length]
        self.values[:, rows, :, :length] = other.values[:, :, :, :length]
        for row in rows.tolist():
            self.lengths[row] = length
        if self.owners is not None:
            self.owners = self.owners.index_copy(0, rows.cpu(), rows.cpu().to(torch.int32))


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
        self.layers: list[LayerWeights] = []
        self.cos = self.sin = torch.empty(0, device="meta")  # not made yet
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
        old: list[LayerWeights | None] = [*self.layers] or [None] * len(model.layers)
        self.layers = [_read_layer(*pair) for pair in zip(model.layers, old, strict=True)]
        if self.cos.device != self.device:
            positions = torch.arange(self.num_positions, device=self.device)[None]
            cos, sin = model.rotary_emb(self.embeddings[:1].float(), positions)
            self.cos, self.sin = cos[0].contiguous(), sin[0].contiguous()  # (positions, head dim), float32
        self.native = self._build_native()

    @property
    def width(self) -> int:
        return self.embeddings.shape[1]

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the weights are. A captured graph reads them there and nowhere else."""
        of_layers = [getattr(layer, name) for layer in self.layers for name in native.LAYER_TENSORS]
        tensors = [*of_layers, self.embeddings, self.final_norm, self.head, self.cos, self.sin]
        return tuple(tensor.data_ptr() for tensor in tensors)

    @property
    def shares_prompts(self) -> bool:
        """Can the samples of a prompt read it from one row of the cache?"""
        return self.native is not None

    @torch.inference_mode(False)
    def new_cache(self, batch: int, capacity: int) -> KVCache:
        shape = (len(self.layers), batch, self.num_key_value_heads, capacity, self.head_dim)
        is_finite = self.native is None
        make = self.embeddings.new_zeros if is_finite else self.embeddings.new_empty
        return KVCache(make(shape), make(shape), [0] * batch, is_finite=is_finite)

    def embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embeddings)

    def logits(self, hidden: Tensor) -> Tensor:
        if self.native is not None and hidden[..., 0].numel() <= native.MAX_LANES:
            return self.native.linear(hidden, self.head)
        head = self.head.float() if self.widens else self.head
        return F.linear(hidden.to(head.dtype), head)

    def forward(self, embeddings: Tensor, cache: KVCache) -> Tensor:
        """Append n positions, (B, n, D), to the cache and return their last hidden states after the final norm."""
        start, n = cache.common_length, embeddings.shape[1]
        positions = None if start is not None and self.native is None else cache.positions(n)
        cache.advance(n)
        if self.native is not None and start != 0:
            assert positions is not None
            lanes = native.Lanes(cache.keys, cache.values, positions, cache.owners, cache.shared_length)
            if lanes.count <= native.MAX_LANES:
                return self.native.forward(embeddings, lanes)
            return self._forward(embeddings, _NativeAttention(self.native, lanes))
        if start is not None:
            return self._forward(embeddings, _AttentionFrom(self, cache.keys, cache.values, start, n))
        assert positions is not None
        return self.forward_at(embeddings, cache.keys, cache.values, positions.to(self.device), max(cache.lengths))

    def forward_at(self, embeddings: Tensor, keys: Tensor, values: Tensor, positions: Tensor, end: int) -> Tensor:
        """As :meth:`forward`, where rows may stand at different ``positions`` (B, n), all before ``end``.

        Nothing here depends on numbers of the host, so that a CUDA graph can hold it.
        """
        return self._forward(embeddings, _AttentionAt(self, keys, values, positions, end))

    def _forward(self, hidden: Tensor, attention: _Attention) -> Tensor:
        if self.widens:
            hidden = hidden.float()
        for index, layer in enumerate(_widened(self.layers) if self.widens else self.layers):
            qkv = F.linear(self._norm(hidden, layer.input_norm), layer.qkv)
            hidden = hidden + F.linear(attention(index, qkv), layer.output)
            hidden = hidden + _mlp(self._norm(hidden, layer.mlp_norm), layer)
        return self._norm(hidden, self.final_norm)

    @property
    def widens(self) -> bool:
        """Are 16-bit weights turned to float32, layer by layer, for products of many rows?

        Compiled code, which multiplies few rows, widens in registers.
        """
        return self.native is not None and self.head.dtype == torch.bfloat16 and not native.multiplies_bfloat16()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), self.norm_epsilon)

    def _build_native(self) -> NativePass | None:
        if not native.supports(self.layers, [self.embeddings, self.final_norm, self.head], self.head_dim):
            return None
        library = native.library()
        if library is None:
            return None
        heads = native.Heads(self.num_heads, self.num_key_value_heads, self.head_dim)
        return NativePass(library, self.layers, self.final_norm, self.cos, self.sin, heads, self.norm_epsilon)


class _AttentionFrom:
    """Attention of n new positions from ``start`` on, the same in every row."""

    def __init__(self, llama: CachedLlama, keys: Tensor, values: Tensor, start: int, n: int) -> None:
        self.llama, self.keys, self.values = llama, keys, values
        self.start, self.end = start, start + n
        precision = torch.float32 if llama.widens else keys.dtype
        self.cos, self.sin = (table[start : self.end].to(precision) for table in (llama.cos, llama.sin))
        # sdpa needs none for a single position or a square
        self.mask = (
            None if start == 0 or n == 1 else _until(torch.arange(start, self.end, device=keys.device), self.end)
        )

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        queries, new_keys, new_values = _heads(self.llama, qkv, self.cos, self.sin)
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.start : self.end] = new_keys
        values[:, :, self.start : self.end] = new_values
        if self.start == 0:
            return _attended(queries, new_keys, new_values, None, is_causal=True)
        return _attended(queries, keys[:, :, : self.end], values[:, :, : self.end], self.mask)


class _AttentionAt:
    """Attention of new positions (B, n) that may differ from row to row."""

    def __init__(self, llama: CachedLlama, keys: Tensor, values: Tensor, positions: Tensor, end: int) -> None:
        self.llama, self.keys, self.values = llama, keys, values
        self.positions, self.end = positions, end
        self.rows = torch.arange(len(positions), device=positions.device)[:, None]
        self.cos, self.sin = (table[positions][:, None].to(keys.dtype) for table in (llama.cos, llama.sin))
        # In numbers: attention would turn one of booleans into them, in every layer again.
        visible = _until(positions, end)[:, None]
        self.mask = torch.zeros_like(visible, dtype=keys.dtype).masked_fill_(~visible, float("-inf"))

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        queries, new_keys, new_values = _heads(self.llama, qkv, self.cos, self.sin)
        keys, values = self.keys[layer], self.values[layer]
        keys[self.rows, :, self.positions] = new_keys.transpose(1, 2).to(keys.dtype)
        values[self.rows, :, self.positions] = new_values.transpose(1, 2).to(keys.dtype)
        return _attended(queries, keys[:, :, : self.end], values[:, :, : self.end], self.mask)


@dataclass
class _NativeAttention:
    """Attention by compiled code, between matrix products by torch: for many rows on a CPU."""

    passes: NativePass
    lanes: native.Lanes

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        return self.passes.attend(layer, qkv, self.lanes)


_Attention = _AttentionFrom | _AttentionAt | _NativeAttention


def _heads(llama: CachedLlama, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Joined projections (B, n, (H + 2 G) d) to rotated queries (B, H, n, d) and keys and values (B, G, n, d)."""
    heads = rearrange(qkv, "b n (h d) -> b h n d", d=llama.head_dim)
    num_rotated = llama.num_heads + llama.num_key_value_heads
    rotated = _rotate(heads[:, :num_rotated], cos, sin)
    return rotated[:, : llama.num_heads], rotated[:, llama.num_heads :], heads[:, num_rotated:]


def _attended(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
    attended = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=is_causal, enable_gqa=queries.shape[1] != keys.shape[1]
    )
    return rearrange(attended, "b h n d -> b n (h d)")


def _until(positions: Tensor, end: int) -> Tensor:
    """True where a position (...) may look at j, (..., end)."""
    return torch.arange(end, device=positions.device) <= positions[..., None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _mlp(x: Tensor, layer: LayerWeights) -> Tensor:
    gate, up = F.linear(x, layer.gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, layer.down)


def _widened(layers: list[LayerWeights]) -> Iterator[LayerWeights]:
    """One after the other in float32, all in the same memory: new memory each time would take longer than the copy."""
    room = layers[0].float()
    yield room
    for layer in layers[1:]:
        yield room.copy_(layer)


def _read_layer(layer: Any, old: LayerWeights | None) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    return LayerWeights(
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
