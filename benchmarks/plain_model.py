"""A world model's updates in the obvious way: what `VideoPredictor`'s are compared with."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch.optim import AdamW

from ivideogpt.losses import TokenizerLoss, TokenizerLossConfig
from ivideogpt.metrics.frame_metrics import find_lpips
from ivideogpt.paths import LPIPS_FOLDER
from ivideogpt.world_model import WorldModel
from mbrl.world_model.video_predictor import VideoPredictor


def in_the_obvious_way(predictor: VideoPredictor) -> VideoPredictor:
    """The same weights, in plain memory order and with an optimizer's loop."""
    tokenizer = deepcopy(predictor.tokenizer).to(memory_format=torch.contiguous_format)
    transformer = deepcopy(predictor.transformer)
    settings = predictor.config
    lpips = None if settings.without_lpips else find_lpips(LPIPS_FOLDER, predictor.model.device)
    trained = [parameter for parameter in tokenizer.parameters() if parameter.requires_grad]
    return VideoPredictor(
        WorldModel(tokenizer, transformer, predictor.model.metadata),
        TokenizerLoss(TokenizerLossConfig(), lpips),
        AdamW(trained, lr=settings.tok_lr, weight_decay=settings.tok_wd, foreach=False),
        AdamW(transformer.parameters(), lr=settings.model_lr, weight_decay=settings.model_wd, foreach=False),
        settings,
        torch.Generator().manual_seed(0),
    )
