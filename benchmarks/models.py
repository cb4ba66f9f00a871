"""Models of the benchmarks: recipes with random weights, which do not affect speed, and the bundled model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from benchmarks.recipes import ACTION_DIM, BUNDLED, CONFIGS, MODELS, Model
from ivideogpt.layout import TokenLayout
from ivideogpt.paths import BUNDLED_MODEL
from ivideogpt.pretrained import build_transformer, read_llama_config
from ivideogpt.training.tokenizer.build import read_config
from ivideogpt.transformer import HeadModelWithAction
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.world_model import WorldModel

ACTION_SCALE = 0.02  # scale of random action weights, that of embeddings; training starts them at zero


def build_tokenizer(model: Model, device: torch.device) -> CompressiveVQModel:
    config = read_config(str(CONFIGS / model.tokenizer), model.resolution)
    return CompressiveVQModel.from_config({**config, "context_length": model.context_length}).to(device)


def build_world_model(model: Model) -> WorldModel:
    """Build an action-conditioned world model with random weights."""
    tokenizer = build_tokenizer(model, torch.device("cpu"))
    layout: TokenLayout = tokenizer.layout(model.segment_length - model.context_length)
    config = read_llama_config(CONFIGS / "llama" / model.transformer)
    transformer = build_transformer(config, layout, ACTION_DIM)
    assert isinstance(transformer, HeadModelWithAction)
    nn.init.normal_(transformer.action_linear.weight, std=ACTION_SCALE)
    return WorldModel(tokenizer.eval(), transformer.eval())


@contextmanager
def checkpoint(name: str) -> Iterator[Path]:
    """Yield the folder of a model, to load it as users do. A recipe's folder is temporary."""
    if name == BUNDLED:
        yield BUNDLED_MODEL
        return
    with tempfile.TemporaryDirectory() as folder:
        build_world_model(MODELS[name]).save_pretrained(folder)
        yield Path(folder)
