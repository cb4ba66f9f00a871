"""Passes by torch's own operations, on any device: the same numbers as Hugging Face's forward.

Shapes: B rows of the cache, n new positions of each, D width, H heads (G of keys and values) of size d, C capacity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ivideogpt.transformer.backends.base import DecodeBackend
from ivideogpt.transformer.llama import KVCache, LayerWeights, LlamaWeights
from ivideogpt.transformer.sampling import Sampling, sample

Attention = Callable[[int, Tensor], Tensor]  # number of a layer, joined projections (B, n, (H + 2 G) d) -> (B, n, H d)


class TorchBackend(DecodeBackend):
    """Passes by torch, and the base of the other backends, which replace a part of it."""

    def __init__(self, weights: LlamaWeights) -> None:
        self.weights = weights

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        make = self.weights.cache_tensor
        return KVCache(make(batch, capacity), make(batch, capacity), [0] * batch)

    def logits(self, hidden: Tensor) -> Tensor:
        head = self.weights.head
        return F.linear(hidden.to(head.dtype), head)

    def sample(self, logits: Tensor, sampling: Sampling, draw: Tensor | None) -> Tensor:
        return sample(logits, sampling, draw)

    def forward(self, embeddings: Tensor, cache: KVCache) -> Tensor:
        start, n = cache.common_length, embeddings.shape[1]
        positions = cache.positions(n) if start is None else None
        cache.advance(n)
        if positions is None:
            assert start is not None
            return self.run_layers(embeddings, AttentionFrom(self.weights, cache, start, n))
        return self.forward_at(
            embeddings, cache.keys, cache.values, positions.to(self.weights.device), max(cache.lengths)
        )

    def forward_at(self, embeddings: Tensor, keys: Tensor, values: Tensor, positions: Tensor, end: int) -> Tensor:
        """Run a pass whose rows may stand at different ``positions`` (B, n), all before ``end``.

        Nothing here depends on numbers of the host, so that a CUDA graph can hold it.
        """
        return self.run_layers(embeddings, AttentionAt(self.weights, keys, values, positions, end))

    def run_layers(self, hidden: Tensor, attention: Attention, layers: Iterable[LayerWeights] | None = None) -> Tensor:
        """Run embeddings (B, n, D) to last hidden states after the final norm. ``layers`` replace the weights' own."""
        for index, layer in enumerate(self.weights.layers if layers is None else layers):
            qkv = F.linear(self._norm(hidden, layer.input_norm), layer.qkv)
            hidden = hidden + F.linear(attention(index, qkv), layer.output)
            gate, up = F.linear(self._norm(hidden, layer.mlp_norm), layer.gate_up).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer.down)
        return self._norm(hidden, self.weights.final_norm)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), self.weights.norm_epsilon)


class AttentionFrom:
    """Attention of n new positions from ``start`` on, the same in every row."""

    def __init__(
        self, weights: LlamaWeights, cache: KVCache, start: int, n: int, dtype: torch.dtype | None = None
    ) -> None:
        self.weights, self.keys, self.values = weights, cache.keys, cache.values
        self.start, self.end = start, start + n
        dtype = dtype or cache.keys.dtype
        self.cos, self.sin = (table[start : self.end].to(dtype) for table in (weights.cos, weights.sin))
        # sdpa needs none for a single position or a square
        self.mask = (
            None if start == 0 or n == 1 else _until(torch.arange(start, self.end, device=self.keys.device), self.end)
        )

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        queries, new_keys, new_values = _heads(self.weights, qkv, self.cos, self.sin)
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.start : self.end] = new_keys
        values[:, :, self.start : self.end] = new_values
        if self.start == 0:
            return _attended(queries, new_keys, new_values, None, is_causal=True)
        return _attended(queries, keys[:, :, : self.end], values[:, :, : self.end], self.mask)


class AttentionAt:
    """Attention of new positions (B, n) that may differ from row to row."""

    def __init__(self, weights: LlamaWeights, keys: Tensor, values: Tensor, positions: Tensor, end: int) -> None:
        self.weights, self.keys, self.values = weights, keys, values
        self.positions, self.end = positions, end
        self.rows = torch.arange(len(positions), device=positions.device)[:, None]
        self.cos, self.sin = (table[positions][:, None].to(keys.dtype) for table in (weights.cos, weights.sin))
        # A mask of floats: attention would convert a boolean one in every layer again.
        visible = _until(positions, end)[:, None]
        self.mask = torch.zeros_like(visible, dtype=keys.dtype).masked_fill_(~visible, float("-inf"))

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        queries, new_keys, new_values = _heads(self.weights, qkv, self.cos, self.sin)
        keys, values = self.keys[layer], self.values[layer]
        keys[self.rows, :, self.positions] = new_keys.transpose(1, 2).to(keys.dtype)
        values[self.rows, :, self.positions] = new_values.transpose(1, 2).to(keys.dtype)
        return _attended(queries, keys[:, :, : self.end], values[:, :, : self.end], self.mask)


def _heads(weights: LlamaWeights, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split joined projections (B, n, (H + 2 G) d): rotated queries (B, H, n, d), keys and values (B, G, n, d)."""
    heads = rearrange(qkv, "b n (h d) -> b h n d", d=weights.head_dim)
    num_rotated = weights.num_heads + weights.num_key_value_heads
    rotated = _rotate(heads[:, :num_rotated], cos, sin)
    return rotated[:, : weights.num_heads], rotated[:, weights.num_heads :], heads[:, num_rotated:]


def _attended(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
    attended = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=is_causal, enable_gqa=queries.shape[1] != keys.shape[1]
    )
    return rearrange(attended, "b h n d -> b n (h d)")


def _until(positions: Tensor, end: int) -> Tensor:
    """Mask (..., end) that is True where a position (...) may attend to j."""
    return torch.arange(end, device=positions.device) <= positions[..., None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
