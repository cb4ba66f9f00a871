"""Build all parts of ``train_tokenizer.py`` from its flags."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from ivideogpt import model_configs
from ivideogpt.data.clips.segments import SegmentSpec, segment_kind
from ivideogpt.errors import UserError
from ivideogpt.losses import TokenizerLoss
from ivideogpt.metrics.frame_metrics import load_lpips
from ivideogpt.paths import PROJECT
from ivideogpt.pretrained import initialise_from_plain_tokenizer, is_plain_tokenizer, load_tokenizer
from ivideogpt.state_dicts import load_strict, read_any_tensors
from ivideogpt.training.common.args import TokenizerArgs
from ivideogpt.training.common.checkpoints import TOKENIZER_CHECKPOINTS
from ivideogpt.training.common.clip_batches import BatchStream, build_clip_loaders, clip_config
from ivideogpt.training.common.models import adapt_tokenizer, freeze_codebooks, freeze_tokens
from ivideogpt.training.common.optim import EmaWeights, build_adamw, trainable_parameters
from ivideogpt.training.common.run import build_run
from ivideogpt.training.common.schedule import TrainProgress, build_scheduler, discriminator_steps, generator_steps
from ivideogpt.training.tokenizer.codebooks import Codebook, Codebooks
from ivideogpt.training.tokenizer.gan import GanLoss
from ivideogpt.training.tokenizer.trainer import WEIGHTS_FOLDER, TokenizerTrainer
from ivideogpt.vq_model import CompressiveVQModel, Discriminator

logger = logging.getLogger(__name__)

WITHOUT_LPIPS = "or train without the perceptual loss: --perc_weight 0"
CONFIG_OF_RESOLUTION = {64: PROJECT / "configs" / "ctx_vae64", 256: PROJECT / "configs" / "ctx_vae"}


def build_tokenizer_trainer(args: TokenizerArgs) -> TokenizerTrainer:
    """Build a trainer with all its parts. Writes nothing."""
    run = build_run(args, TOKENIZER_CHECKPOINTS)
    accelerator = run.accelerator
    loss = build_loss(args, accelerator.device)
    kind = segment_kind(args.rand_select, args.rand_shuffle)
    horizon = args.segment_horizon if kind in ("sparse_future", "shuffled") else None
    segment = SegmentSpec(kind, args.segment_length, args.context_length, horizon)
    config = clip_config(args, segment, args.train_batch_size)
    train_clips, validation_clips = build_clip_loaders(config, run, args.train_batch_size)
    tokenizer, fresh_codebooks = build_tokenizer(args, run.checkpoint)
    if args.allow_tf32:  # convolutions keep PyTorch's default
        torch.backends.cuda.matmul.allow_tf32 = True

    optimizer = build_optimizer(tokenizer, args.learning_rate, args, accelerator)
    updates = len(generator_steps(args.start_global_step, args.max_train_steps))
    scheduler = build_scheduler(args.lr_scheduler, optimizer, args.lr_warmup_steps, updates)
    model, prepared_optimizer = accelerator.prepare(tokenizer, optimizer)
    run.facts["tokenizer"] = {
        "config": json.loads(tokenizer.to_json_string()),
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        "lpips": loss.lpips is not None,
    }
    decay = args.codebook_decay or None
    codebooks = Codebooks(
        Codebook("context", tokenizer.quantize.embedding.weight, accelerator, decay),
        Codebook("dynamics", tokenizer.dynamics_quantize.embedding.weight, accelerator, decay, bool(args.still_weight)),
    )
    return TokenizerTrainer(
        args=args,
        run=run,
        model=model,
        loss=loss,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        codebooks=codebooks,
        fresh_codebooks=fresh_codebooks,
        average=EmaWeights(tokenizer) if args.use_ema else None,
        gan_loss=build_gan_loss(args, accelerator),
        clips=BatchStream(train_clips, accelerator.device),
        validation_clips=validation_clips,
        progress=TrainProgress(step=args.start_global_step),
    )


def build_gan_loss(args: TokenizerArgs, accelerator: Accelerator) -> GanLoss | None:
    """Build the GAN loss, or None if the run ends before ``--disc_start``."""
    updates = len(discriminator_steps(args.start_global_step, args.max_train_steps, args.disc_start))
    if not updates:
        return None
    discriminator = Discriminator(depth=args.disc_depth)
    if args.discriminator_config_name_or_path is not None:
        path = Path(args.discriminator_config_name_or_path)
        load_strict(discriminator, read_any_tensors(path), str(path))
    optimizer = build_optimizer(discriminator, args.discr_learning_rate, args, accelerator)
    scheduler = build_scheduler(args.discr_lr_scheduler, optimizer, args.lr_warmup_steps, updates)
    model, prepared_optimizer = accelerator.prepare(discriminator, optimizer)
    return GanLoss(model, prepared_optimizer, scheduler, accelerator, args.disc_weight, args.max_grad_norm)


def build_optimizer(model: nn.Module, learning_rate: float, args: TokenizerArgs, accelerator: Accelerator) -> Optimizer:
    scale = accelerator.num_processes * args.train_batch_size * args.gradient_accumulation_steps
    return build_adamw(
        trainable_parameters(model),
        learning_rate * (scale if args.scale_lr else 1),
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        epsilon=args.adam_epsilon,
        in_8bit=args.use_8bit_adam,
    )


def build_tokenizer(args: TokenizerArgs, checkpoint: Path | None) -> tuple[CompressiveVQModel, frozenset[str]]:
    """Build a tokenizer in training mode; also return the names of its untrained codebooks."""
    model, fresh_codebooks = starting_tokenizer(args, checkpoint)
    adapt_tokenizer(model, args.context_length, args.resolution)
    model.set_cross_attention_dropout(args.cross_attention_dropout)
    if args.selected_params or args.codebook_decay:
        freeze_codebooks(model)
    if args.decoders_only:
        freeze_tokens(model)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if args.compile:
        for part in (model.encoder, model.decoder, model.cond_encoder, model.cond_decoder):
            part.compile()
    model.train().to(memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    return model, fresh_codebooks


def starting_tokenizer(args: TokenizerArgs, checkpoint: Path | None) -> tuple[CompressiveVQModel, frozenset[str]]:
    """Load the tokenizer from the run's checkpoint or pretrained weights (a tokenizer or a plain VAE), or build it."""
    start = args.pretrained_model_name_or_path
    if checkpoint is not None:
        return load_tokenizer(checkpoint / WEIGHTS_FOLDER), frozenset()
    if start is not None and not is_plain_tokenizer(start):
        if args.model_config_name_or_path is not None:
            logger.warning("--model_config_name_or_path has no effect: %s says what the model is", start)
        return load_tokenizer(start), frozenset({"dynamics"} if args.align_to_context else ())
    config = read_config(args.model_config_name_or_path, args.resolution)
    flags = {"context_length": args.context_length, "resolution": args.resolution}
    model = CompressiveVQModel.from_config({**config, **flags})
    if start is None:
        return model, frozenset({"context", "dynamics"})
    initialise_from_plain_tokenizer(model, start)
    return model, frozenset({"dynamics"})


def read_config(path: str | None, resolution: int) -> dict[str, Any]:
    """Read a tokenizer's config.json (a file, or its folder), or the one for a resolution."""
    if path is None and resolution not in CONFIG_OF_RESOLUTION:
        raise UserError(f"no default architecture for --resolution {resolution}: give --model_config_name_or_path")
    return model_configs.read_config(CONFIG_OF_RESOLUTION[resolution] if path is None else path)


def build_loss(args: TokenizerArgs, device: torch.device) -> TokenizerLoss:
    """Build the loss, with LPIPS if it has a weight; raises UserError if its files are missing."""
    return TokenizerLoss(
        reconstruction=args.vae_loss,  # type: ignore[arg-type]
        recon_weight=args.recon_weight,
        perc_weight=args.perc_weight,
        balanced=args.balanced_loss,
        motion_weight=args.motion_weight,
        still_weight=args.still_weight,
        gradient_weight=args.gradient_weight,
        lpips=load_lpips(args.lpips_path, device, WITHOUT_LPIPS) if args.perc_weight else None,
    )
