"""Networks small enough for tests: filled by formula, so that tokens vary and every run is the same."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

from ivideogpt.metadata import ModelMetadata
from ivideogpt.pretrained import Transformer, build_transformer
from ivideogpt.transformer import LlamaConfig
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.world_model import WorldModel
from tests.parity.formulas import fill, golden

SEGMENT_LENGTH = 5
ACTION_DIM = 4


def llama_config(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**golden()["transformer"]["ctx2"]["config"] | changes)


def tokenizer(context_length: int = 2) -> CompressiveVQModel:
    return deepcopy(_tokenizer(context_length))


@cache
def _tokenizer(context_length: int) -> CompressiveVQModel:
    return fill(CompressiveVQModel(**tokenizer_config(), context_length=context_length))


def golden_tokenizer() -> CompressiveVQModel:
    """The one that rollouts were recorded with."""
    return fill(CompressiveVQModel(**golden()["tokenizer"]["ctx2_64"]["config"]))


def tokenizer_config() -> dict[str, Any]:
    """As small as 32 groups in the cross-attention's norms allow: a third of the time of the golden numbers' one."""
    config = golden()["tokenizer"]["ctx2_64"]["config"]
    del config["context_length"]
    return config | {"block_out_channels": [8, 32, 32], "norm_num_groups": 4, "latent_channels": 8}


def transformer(
    tokens_of: CompressiveVQModel, action_dim: int | None = None, config: LlamaConfig | None = None, **heads: Any
) -> Transformer:
    layout = tokens_of.layout(SEGMENT_LENGTH - tokens_of.context_length)
    return fill(build_transformer(config or llama_config(), layout, action_dim, **heads))


def world_model(
    context_length: int = 2,
    action_dim: int | None = None,
    frames_that_fit: int | None = None,
    reward_prediction: bool = False,
    success_prediction: bool = False,
    **metadata: Any,
) -> WorldModel:
    """``frames_that_fit`` limits the transformer's positions to that many future frames."""
    tok = tokenizer(context_length)
    config = llama_config()
    if frames_that_fit is not None:
        config.max_position_embeddings = tok.layout(frames_that_fit).sequence_length
    heads = {"reward_prediction": reward_prediction, "success_prediction": success_prediction}
    model = WorldModel(tok, transformer(tok, action_dim, config, **heads))
    inferred = ModelMetadata.infer(model.tokenizer, model.transformer)
    model.metadata = replace(inferred, segment_length=SEGMENT_LENGTH, **metadata)
    return model
