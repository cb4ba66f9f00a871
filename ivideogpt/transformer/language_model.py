"""LLaMA for training, with the names, shapes and numbers of Hugging Face's class, and its config.

Own code, because importing it from transformers takes longer than importing torch. Tests compare the two. Generation
uses :class:`ivideogpt.transformer.llama.LlamaWeights`, which reads the weights of either.

Shapes: B rows, L positions (P of them before, in a cache), D width, H heads of size d.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ivideogpt.errors import UserError
from ivideogpt.outputs import Output
from ivideogpt.transformer.causal_attention import attention

IGNORED_LABEL = -100
DEFAULT_ROPE_THETA = 10000.0


@dataclass
class LlamaConfig:
    """The architecture, with the keys of Hugging Face's ``LlamaConfig``; older keys of rope are taken, too."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: Any = None  # int, as many as heads unless given
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    head_dim: Any = None  # int, an equal share of the width unless given
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    pad_token_id: None = None
    bos_token_id: None = None
    eos_token_id: None = None
    use_cache: bool = True
    pretraining_tp: int = 1
    model_type: str = "llama"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads != 0:
            raise UserError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        for name, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
            if getattr(self, name) != only:
                raise UserError(f"{name} is {getattr(self, name)!r}: nothing but {only!r} can be decoded")
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        rope = {"rope_theta": self.rope_theta or DEFAULT_ROPE_THETA} | (self.rope_scaling or self.rope_parameters or {})
        rope["rope_type"] = rope.pop("type", rope.get("rope_type", "default"))
        self.rope_parameters, self.rope_theta, self.rope_scaling = rope, None, None

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        del values["rope_theta"], values["rope_scaling"]  # both are in rope_parameters
        return values

    def to_json_string(self) -> str:
        """Return the text of ``config.json``."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"


class LanguageModelOutput(Output):
    """``hidden_states`` holds the last ones alone, after the final norm, if they were asked for."""

    loss: Tensor | None
    logits: Tensor | None
    hidden_states: tuple[Tensor, ...] | None


class ModelOutput(Output):
    last_hidden_state: Tensor


class KeysAndValues:
    """Keys and values of every layer, (B, G, P, d), that grow with every forward pass."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]] | None = None) -> None:
        self.layers = layers or []

    def get_seq_length(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer == len(self.layers):
            self.layers.append((keys, values))
        else:
            old_keys, old_values = self.layers[layer]
            self.layers[layer] = torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)
        return self.layers[layer]

    def crop(self, length: int) -> None:
        """Keep the first ``length`` positions; drop as many at the end if it is negative."""
        self.layers = [(keys[:, :, :length], values[:, :, :length]) for keys, values in self.layers]


class LlamaRMSNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(hidden.dtype)


class LlamaRotaryEmbedding(nn.Module):
    """Cosines and sines of positions, each (1, L, d)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        assert config.rope_parameters is not None
        # On the CPU also where shapes alone are built: arange on the meta device would import torch._dynamo.
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float, device="cpu") / config.head_dim
        self.inv_freq = nn.Buffer(1.0 / (config.rope_parameters["rope_theta"] ** exponents), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device, torch.float)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def rotary_embedding(config: LlamaConfig) -> nn.Module:
    """Return the module for the config's kind of rope; transformers is imported for the rare ones."""
    assert config.rope_parameters is not None
    if config.rope_parameters["rope_type"] == "default":
        return LlamaRotaryEmbedding(config)
    import transformers
    from transformers.models.llama import modeling_llama

    return modeling_llama.LlamaRotaryEmbedding(transformers.LlamaConfig(**config.to_dict()))


class LlamaAttention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.attention_dropout = config.attention_dropout
        width = config.hidden_size
        self.q_proj = nn.Linear(width, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, width, bias=False)

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeysAndValues | None
    ) -> Tensor:
        projected = (project(hidden) for project in (self.q_proj, self.k_proj, self.v_proj))
        queries, keys, values = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in projected)
        queries, keys = _rotate(queries, cos, sin), _rotate(keys, cos, sin)
        if cache is not None:
            keys, values = cache.update(keys, values, self.layer)
        attended = attention(queries, keys, values, mask, self.attention_dropout if self.training else 0.0)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class LlamaMLP(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class LlamaDecoderLayer(nn.Module):
    """One layer; its name is what ``configs/accelerate/fsdp2.yaml`` wraps."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, layer)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeysAndValues | None
    ) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin, mask, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class LlamaModel(nn.Module):
    """LLaMA from token ids or embeddings to last hidden states."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = rotary_embedding(config)
        self.gradient_checkpointing = False
        _initialise(self, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeysAndValues | None = None,
    ) -> ModelOutput:
        """Run the layers. ``past_key_values`` hold earlier positions and take up these."""
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        length, past = hidden.shape[1], past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=hidden.device)[None]
        mask = _mask(length, past, attention_mask, hidden.device)
        cos, sin = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                assert past_key_values is None, "recomputed layers would append to the cache twice"
                hidden = checkpoint(layer, hidden, cos, sin, mask, None, use_reentrant=False)
            else:
                hidden = layer(hidden, cos, sin, mask, past_key_values)
        return ModelOutput(last_hidden_state=self.norm(hidden))


class LlamaForCausalLM(nn.Module):
    """LLaMA with a head that predicts next tokens."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        _initialise(self.lm_head, config.initializer_range)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each layer in the backward pass, which takes time and saves memory."""
        self.model.gradient_checkpointing = True

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeysAndValues | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        logits_to_keep: int = 0,
    ) -> LanguageModelOutput:
        """Compute logits of the last ``logits_to_keep`` positions (0: all), and their loss if ``labels`` are given."""
        hidden = self.model(input_ids, inputs_embeds, attention_mask, position_ids, past_key_values).last_hidden_state
        logits = self.lm_head(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            targets = F.pad(labels, (0, 1), value=IGNORED_LABEL)[:, 1:]
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL)
        return LanguageModelOutput(loss=loss, logits=logits, hidden_states=(hidden,) if output_hidden_states else None)


@torch.no_grad()
def _initialise(module: nn.Module, std: float) -> None:
    """Draw weights from a normal distribution, in the order in which Hugging Face's class draws them."""
    for each in module.modules():
        if isinstance(each, nn.Linear | nn.Embedding):
            nn.init.normal_(each.weight, std=std)


def _mask(length: int, past: int, padding: Tensor | None, device: torch.device) -> Tensor | None:
    """Return True where a position may look, (1 or B, 1, L, P + L); None for plain causal attention."""
    if padding is None or padding.all():
        return None
    visible = torch.ones(length, past + length, dtype=torch.bool, device=device).tril_(past)[None, None]
    return visible & padding[:, None, None].bool()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
