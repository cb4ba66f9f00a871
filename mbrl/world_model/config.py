"""Settings of a world model that learns beside an agent, under ``world_model``."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ivideogpt.errors import UserError

RELEASED = "pretrained_models/ivideogpt-oxe-64-act-free"
INERT_KEYS = ("fast_reward_predictor", "reward_lr", "reward_wd")
AT_LEAST_0 = ("tok_lr", "tok_wd", "model_lr", "model_wd", "reward_weight")
BELOW_1 = ("tok_beta1", "tok_beta2", "llama_attn_drop")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorldModelConfig:
    """Settings under ``world_model``; the defaults are the paper's.

    Attributes:
        load_pretrained_model: start the transformer from ``pretrained_transformer_path``; otherwise it is new.
        pretrained_model_name_or_path: the tokenizer; None for a new one.
        load_internal_llm: the transformer's file is of an action-free model, or only its language model is wanted.
        llama_attn_drop: attention dropout in the transformer's updates; None: as ``config_name`` says.
        symlog: rewards are learned in symlog space.
        max_grad_norm: None: gradients are not clipped.
        selected_params: the codebooks stay as they are.
        max_target_frames: future frames of a segment that the tokenizer trains on.
        reward_weight: of the reward's squared error beside the cross-entropy.
        without_lpips: the tokenizer learns without the perceptual loss.
        fast_reward_predictor, reward_lr, reward_wd: historical, without effect.
    """

    load_pretrained_model: bool = True
    config_name: str = "configs/llama/config.json"
    vqgan_type: str = "ctx_vqgan"
    pretrained_model_name_or_path: str | None = f"{RELEASED}/tokenizer"
    pretrained_transformer_path: str = f"{RELEASED}/transformer"
    load_internal_llm: bool = True
    llama_attn_drop: float | None = 0.1
    symlog: bool = True
    context_length: int = 2
    segment_length: int = 12
    action_dim: int = 4
    batch_size: int = 16
    selected_params: bool = True
    tok_lr: float = 1e-4
    tok_wd: float = 0.0
    tok_beta1: float = 0.9
    tok_beta2: float = 0.999
    max_grad_norm: float | None = 1.0
    max_target_frames: int = 5
    model_lr: float = 1e-4
    model_wd: float = 0.0
    embed_no_wd: bool = True
    reward_weight: float = 1.0
    without_lpips: bool = False
    fast_reward_predictor: bool = False
    reward_lr: float = 1e-4
    reward_wd: float = 0.0

    def __post_init__(self) -> None:
        if self.vqgan_type != "ctx_vqgan":
            raise UserError(f"world_model.vqgan_type is {self.vqgan_type!r}, only 'ctx_vqgan' is supported")
        if not 0 < self.context_length < self.segment_length:
            raise UserError(
                f"world_model.segment_length {self.segment_length} must be more than its context_length "
                f"{self.context_length}, which must be positive"
            )
        for name in ("batch_size", "max_target_frames", "action_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"world_model.{name} is {getattr(self, name)}: it must be at least 1")
        for name in (*AT_LEAST_0, *BELOW_1):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"world_model.{name} is {getattr(self, name)}: it must be at least 0")
        for name in BELOW_1:
            if (getattr(self, name) or 0) >= 1:
                raise UserError(f"world_model.{name} is {getattr(self, name)}: it must be less than 1")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise UserError(f"world_model.max_grad_norm is {self.max_grad_norm}: it must be more than 0")
        for name in INERT_KEYS:
            if getattr(self, name) != WorldModelConfig.__dataclass_fields__[name].default:
                logger.warning("world_model.%s has no effect: the transformer's own head predicts rewards", name)
