"""The weights of a LLaMA as decoders read them, and the cache of keys and values that they fill.

Knows token embeddings, positions and the cache; knows no layout of tokens and no way to run a pass: those are in
:mod:`ivideogpt.transformer.backends`.

Shapes: B rows of the cache, n new positions of each, D width, H heads (G of keys and values) of size d, C capacity.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.errors import UserError
from ivideogpt.transformer.language_model import LlamaForCausalLM


@dataclass(frozen=True)
class LayerWeights:
    """One layer of a LLaMA, with the projections that read the same input joined into one matrix."""

    input_norm: Tensor
    qkv: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the fields."""
        return [getattr(self, field.name) for field in fields(self)]


@dataclass
class KVCache:
    """Keys and values of every layer, (layers, B, G, C, d). ``lengths`` says how many positions of each row are filled.

    What is not filled holds finite numbers: attention that is masked still multiplies them.
    """

    keys: Tensor
    values: Tensor
    lengths: list[int]

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
        """Return the next n positions of every row, (B, n) int64 on the CPU."""
        return torch.tensor(self.lengths, device="cpu")[:, None] + torch.arange(n, device="cpu")

    def advance(self, n: int) -> None:
        self.lengths = [length + n for length in self.lengths]
        assert max(self.lengths) <= self.capacity, f"{max(self.lengths)} positions in a cache of {self.capacity}"

    def expand(self, n: int) -> KVCache:
        """Return every row n times, in a cache of its own."""
        return self.select(torch.arange(self.num_rows, device="cpu").repeat_interleave(n))

    def select(self, rows: Tensor) -> KVCache:
        """Return some rows, in a cache of their own. Rows that were expanded from one must stay together."""
        filled, parts = max(self.lengths), []
        for part in (self.keys, self.values):
            kept = self._empty_like(part, len(rows))
            kept[:, :, :, :filled] = part[:, rows, :, :filled]
            parts.append(kept)
        return replace(self, keys=parts[0], values=parts[1], lengths=[self.lengths[row] for row in rows.tolist()])

    def overwrite(self, rows: Tensor, prompts: KVCache) -> None:
        """Begin rows again with the rows of another cache, which have one length, an equal number with each.

        All rows that were expanded from one must be among them.
        """
        length, n = prompts.lengths[0], len(rows) // prompts.num_rows
        for mine, theirs in ((self.keys, prompts.keys), (self.values, prompts.values)):
            mine[:, rows, :, :length] = theirs[:, :, :, :length].repeat_interleave(n, dim=1)
        for row in rows.tolist():
            self.lengths[row] = length

    def _empty_like(self, part: Tensor, num_rows: int) -> Tensor:
        with torch.inference_mode(False):  # see LlamaWeights
            return part.new_zeros(part.shape[0], num_rows, *part.shape[2:])


class LlamaWeights:
    """The weights of a Hugging Face LLaMA and joined copies of some: after training or moving, call :meth:`refresh`.

    What is written to again is allocated outside inference mode, whatever mode the caller is in: a tensor made inside
    could never be written to outside.
    """

    def __init__(self, llm: LlamaForCausalLM) -> None:
        config = llm.config
        self.llm = llm
        self.num_heads: int = config.num_attention_heads
        self.num_key_value_heads: int = config.num_key_value_heads
        self.head_dim: int = config.head_dim
        self.num_positions: int = config.max_position_embeddings
        self.norm_epsilon: float = config.rms_norm_eps
        self.layers: list[LayerWeights] = []
        self.cos = self.sin = torch.empty(0, device="meta")  # not made yet
        self.refresh()

    @torch.inference_mode(False)
    @torch.no_grad()
    def refresh(self) -> None:
        """Read the module's weights again. Joined copies keep their addresses."""
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

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    @property
    def width(self) -> int:
        return self.embeddings.shape[1]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that a pass multiplies with, without the tables of positions."""
        layers = [tensor for layer in self.layers for tensor in layer.tensors]
        return [*layers, self.embeddings, self.final_norm, self.head]

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids (...) to (..., D)."""
        return F.embedding(ids, self.embeddings)

    @torch.inference_mode(False)
    def cache_tensor(self, batch: int, capacity: int, is_zero: bool = True) -> Tensor:
        """Allocate memory for the keys or the values of all layers, (layers, B, G, C, d)."""
        make = self.embeddings.new_zeros if is_zero else self.embeddings.new_empty
        return make(len(self.layers), batch, self.num_key_value_heads, capacity, self.head_dim)


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
    """Stack the weights, in the memory of ``old`` if it still fits so that its address stays the same."""
    weights = [_plain_weight(projection) for projection in projections]
    if old is not None and (old.dtype, old.device) == (weights[0].dtype, weights[0].device):
        return torch.cat(weights, out=old)
    return torch.cat(weights)


def _plain_weight(projection: nn.Module) -> Tensor:
    if type(projection) is not nn.Linear:
        raise UserError(f"a {type(projection).__name__} layer cannot be decoded; merge adapters into the model first")
    return projection.weight.detach()
