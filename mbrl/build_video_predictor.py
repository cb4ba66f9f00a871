"""Build a world model and its training parts from its settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ivideogpt.action_spaces import ActionSpaces
from ivideogpt.errors import UserError
from ivideogpt.losses import TokenizerLoss
from ivideogpt.metadata import ModelMetadata
from ivideogpt.metrics.frame_metrics import load_lpips
from ivideogpt.model_configs import read_config
from ivideogpt.paths import LPIPS_FOLDER, here_or_in_project
from ivideogpt.pretrained import (
    build_transformer,
    initialise_transformer,
    load_tokenizer,
    model_folder,
    read_llama_config,
)
from ivideogpt.training.common.models import adapt_llama_config, adapt_tokenizer, freeze_codebooks
from ivideogpt.training.common.optim import build_adamw, trainable_parameters, weight_decay_groups
from ivideogpt.transformer import HeadModelWithAction
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.world_model import WorldModel
from mbrl.settings import RELEASED, WorldModelConfig
from mbrl.video_predictor import VideoPredictor

PUBLISHED = "thuml/ivideogpt-oxe-64-act-free"
NEW_TOKENIZER = "configs/ctx_vae64/config.json"
WITHOUT_LPIPS = "or let the tokenizer learn without the perceptual loss: world_model.without_lpips=true"

logger = logging.getLogger(__name__)


def build_video_predictor(
    config: WorldModelConfig,
    device: torch.device,
    seed: int,
    image_size: int = 64,
    lpips_path: str | Path = LPIPS_FOLDER,
) -> VideoPredictor:
    if config.without_lpips:
        logger.warning("the tokenizer learns WITHOUT the perceptual loss, as world_model.without_lpips=true says")
    loss = TokenizerLoss(lpips=None if config.without_lpips else load_lpips(lpips_path, device, WITHOUT_LPIPS))
    model = build_world_model(config, seed, image_size).to(device)
    if config.selected_params:
        freeze_codebooks(model.tokenizer)
        if config.pretrained_model_name_or_path is None:
            logger.warning(
                "the codebooks of a new tokenizer stay random: world_model.selected_params=false trains them"
            )
    trained = trainable_parameters(model.tokenizer)
    groups = weight_decay_groups(model.transformer, config.model_wd, config.embed_no_wd)
    return VideoPredictor(
        model,
        loss,
        build_adamw(trained, config.tok_lr, (config.tok_beta1, config.tok_beta2), config.tok_wd),
        build_adamw(groups, config.model_lr),
        config,
        torch.Generator().manual_seed(seed),
    )


def build_world_model(config: WorldModelConfig, seed: int, image_size: int = 64) -> WorldModel:
    """Build a world model with a reward head, from a released checkpoint, the bundled one, or from scratch; on the CPU.

    Args:
        seed: of what starts fresh.
        image_size: of the frames that it will be shown, pixels.

    Raises:
        UserError: a checkpoint is missing, or does not go with the configuration.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if config.pretrained_model_name_or_path is None:
            new = read_config(here_or_in_project(NEW_TOKENIZER))
            tokenizer = CompressiveVQModel.from_config({**new, "context_length": config.context_length})
        else:
            tokenizer = load_tokenizer(_given_or_bundled(config.pretrained_model_name_or_path))
        advice = "the environment's frames need another world_model.pretrained_model_name_or_path"
        adapt_tokenizer(tokenizer, config.context_length, image_size, advice)
        transformer = _transformer(config, tokenizer)
    return WorldModel(tokenizer, transformer, _metadata(config, tokenizer), action_space=config.action_space)


def _transformer(config: WorldModelConfig, tokenizer: CompressiveVQModel) -> HeadModelWithAction:
    layout = tokenizer.layout(config.segment_length - config.context_length)
    llama_config = read_llama_config(here_or_in_project(config.config_name))
    llama_config = adapt_llama_config(llama_config, layout, "world_model.segment_length", config.llama_attn_drop)
    spaces = _action_spaces(config)
    action_dim = config.action_dim if spaces is None else spaces.length
    transformer = build_transformer(llama_config, layout, action_dim, reward_prediction=True)
    assert isinstance(transformer, HeadModelWithAction)
    if config.load_pretrained_model:
        path = _given_or_bundled(config.pretrained_transformer_path)
        initialise_transformer(transformer, path, config.load_internal_llm)
    return transformer


def _starting_metadata(config: WorldModelConfig) -> ModelMetadata | None:
    starts = [config.pretrained_transformer_path] if config.load_pretrained_model else []
    if config.pretrained_model_name_or_path is not None:
        starts.append(config.pretrained_model_name_or_path)
    found = (ModelMetadata.read(model_folder(_given_or_bundled(start))) for start in starts)
    return next((metadata for metadata in found if metadata is not None), None)


def _action_spaces(config: WorldModelConfig) -> ActionSpaces | None:
    """Return the starting point's action spaces if one of them is chosen, or if its whole transformer is taken."""
    stated = _starting_metadata(config)
    takes_all = config.load_pretrained_model and not config.load_internal_llm
    if stated is None or (config.action_space is None and not takes_all):
        if config.action_space is not None:
            raise UserError(f"world_model.action_space is {config.action_space!r}, but the starting point has none")
        return None
    space = stated.find_space(config.action_space)
    if space is not None and space.dim != config.action_dim:
        raise UserError(
            f"world_model.action_dim is {config.action_dim}, but action space {space}: set it to {space.dim}"
        )
    return stated.action_spaces


def _metadata(config: WorldModelConfig, tokenizer: CompressiveVQModel) -> ModelMetadata:
    """Make metadata from the config; sampling options and kinds of actions are the starting point's."""
    stated, spaces = _starting_metadata(config), _action_spaces(config)
    known: dict[str, Any] = {}
    if stated is not None:
        takes_reward_head = config.load_pretrained_model and not config.load_internal_llm and stated.reward_prediction
        if takes_reward_head and stated.symlog != config.symlog:
            raise UserError(
                f"world_model.symlog is {str(config.symlog).lower()}, but {config.pretrained_transformer_path} learned "
                f"rewards with{'' if stated.symlog else 'out'} it: set it to {str(stated.symlog).lower()}"
            )
        known["generation"] = stated.generation
        if spaces is None and stated.action_dim == config.action_dim:
            known["action_normalization"] = stated.action_normalization
    return ModelMetadata(
        resolution=tokenizer.config.resolution,
        context_length=config.context_length,
        segment_length=config.segment_length,
        action_dim=config.action_dim if spaces is None else spaces.length,
        action_spaces=spaces,
        reward_prediction=True,
        symlog=config.symlog,
        **known,
    )


def _given_or_bundled(path: str) -> str | Path:
    """Resolve a path here, in the project, or as a hub id; UserError if the published checkpoint is not there."""
    found = here_or_in_project(path)
    if found.exists():
        return found
    if path.startswith(f"{RELEASED}/"):
        raise UserError(
            f"no checkpoint folder {path}: put the files of {PUBLISHED} there, or give {PUBLISHED} itself, which is "
            "then downloaded, or the bundled model, as world_model.pretrained_model_name_or_path and "
            "world_model.pretrained_transformer_path (docs/mbrl.md)"
        )
    return path
