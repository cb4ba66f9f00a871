"""Build all parts of ``train_gpt.py`` from its flags."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ivideogpt.action_spaces import ActionSpaces, same_encoding
from ivideogpt.data.catalog import dataset_info
from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.evaluation_clips import EvaluationClips, build_benchmark_evaluation, build_evaluation_clips
from ivideogpt.data.clips.segments import SegmentSpec, segment_kind
from ivideogpt.data.dataset_mixes import resolve_mix
from ivideogpt.data.tokens.token_store import TokenLoader, TokenStore, read_description, token_checksum
from ivideogpt.errors import UserError
from ivideogpt.layout import TokenLayout
from ivideogpt.metadata import ModelMetadata
from ivideogpt.pretrained import (
    TRANSFORMER_WEIGHTS,
    Transformer,
    build_transformer,
    initialise_transformer,
    language_model,
    load_tokenizer,
    model_folder,
    read_llama_config,
)
from ivideogpt.state_dicts import load_strict, read_tensors
from ivideogpt.training.additions.history_corruption import OwnHistory, find_still_code
from ivideogpt.training.common import clip_batches
from ivideogpt.training.common.args import GptArgs
from ivideogpt.training.common.checkpoints import TRANSFORMER_CHECKPOINTS
from ivideogpt.training.common.clip_batches import VALIDATION_SEED, BatchStream, Loader
from ivideogpt.training.common.fsdp import is_sharded
from ivideogpt.training.common.models import adapt_llama_config, adapt_tokenizer
from ivideogpt.training.common.optim import build_adamw, trainable_parameters, weight_decay_groups
from ivideogpt.training.common.run import Run, build_run
from ivideogpt.training.common.schedule import TrainProgress, build_scheduler
from ivideogpt.training.transformer.lora import Adapters
from ivideogpt.training.transformer.sampled_validation import find_scorer
from ivideogpt.training.transformer.trainer import GptTrainer
from ivideogpt.vq_model import CompressiveVQModel

logger = logging.getLogger(__name__)


def build_gpt_trainer(args: GptArgs) -> GptTrainer:
    """Build a trainer with all its parts. Writes nothing."""
    if (spaces := find_action_spaces(args)) is not None:
        if args.action_dim not in (GptArgs.action_dim, spaces.length):
            raise UserError(f"--action_dim {args.action_dim}: the action spaces say {spaces.length}; leave it out")
        args = replace(args, action_dim=spaces.length)
    run = build_run(args, TRANSFORMER_CHECKPOINTS)
    accelerator = run.accelerator
    tokenizer = load_tokenizer(args.pretrained_model_name_or_path)
    run.facts["tokens_of"] = token_checksum(tokenizer.state_dict())
    adapt_tokenizer(tokenizer, args.context_length, args.resolution)
    tokenizer = prepare_tokenizer(tokenizer.to(accelerator.device))
    layout = tokenizer.layout(args.segment_length - args.context_length)
    train_batches, validation_batches = build_batches(args, run, tokenizer, layout)
    transformer = build_model(args, layout, run.checkpoint)
    adapters = Adapters(transformer, args.lora_r, args.lora_alpha, args.lora_dropout) if args.lora else None
    optimizer = build_adamw(weight_decay_groups(transformer, args.weight_decay, args.embed_no_wd), args.learning_rate)
    updates = args.max_train_steps - args.start_completed_steps
    scheduler = build_scheduler(args.lr_scheduler_type, optimizer, args.num_warmup_steps, updates)
    model, prepared_optimizer = accelerator.prepare(transformer, optimizer)
    run.facts["transformer"] = {
        "config": language_model(transformer).config.to_dict(),
        "parameters": sum(parameter.numel() for parameter in transformer.parameters()),
        "trained_parameters": sum(parameter.numel() for parameter in trainable_parameters(transformer)),
    }
    return GptTrainer(
        args=args,
        run=run,
        model=model,
        new_transformer=partial(new_transformer, args, layout),
        adapters=adapters,
        layout=layout,
        metadata=build_metadata(args, tokenizer),
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        batches=None if train_batches is None else BatchStream(train_batches, accelerator.device),
        validation_batches=validation_batches,
        tokenizer=tokenizer,
        scoring=find_scorer(args, accelerator.device) if args.scores_samples else None,
        own_history=build_own_history(args, tokenizer, model),
        evaluation_clips=build_evaluation(args) if args.eval_only and args.scores_samples else None,
        progress=TrainProgress(step=args.start_completed_steps),
    )


def find_action_spaces(args: GptArgs) -> ActionSpaces | None:
    """Return the action spaces of a token store, of the flags, or of a model that is only evaluated; None without any.

    Raises:
        UserError: the store was made with others than those that were asked for.
    """
    if not args.action_conditioned:
        return None
    asked = None if args.action_spaces is None else ActionSpaces.read(args.action_spaces, args.action_adapters)
    if args.token_store is not None:
        stored = read_description(args.token_store, args.segment_length).action_spaces
        if asked is not None and not same_encoding(asked, stored):
            raise UserError(
                f"{args.token_store} was made with other action spaces than --action_spaces {args.action_spaces}: "
                "leave the flag out, or make the store again with it"
            )
        return stored
    stated = starting_metadata(args) if args.eval_only else None
    return stated.action_spaces if asked is None and stated is not None else asked


def starting_metadata(args: GptArgs) -> ModelMetadata | None:
    start = args.pretrained_transformer_path
    return None if start is None else ModelMetadata.read(model_folder(start))


def prepare_tokenizer(tokenizer: CompressiveVQModel) -> CompressiveVQModel:
    """Freeze the tokenizer in eval mode and the fastest memory format, in place."""
    return tokenizer.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def compile_transformer(transformer: Transformer) -> None:
    """Compile in place, so that tensors keep their names; the first steps wait for the compiler."""
    language_model(transformer).model.compile()


def build_model(args: GptArgs, layout: TokenLayout, checkpoint: Path | None) -> Transformer:
    """Build a transformer, with the weights of the run's checkpoint or of the starting point if there is one."""
    transformer = new_transformer(args, layout)
    if checkpoint is not None and not args.lora:  # LoRA keeps these weights; its adapters are state
        file = checkpoint / TRANSFORMER_WEIGHTS
        load_strict(transformer, read_tensors(file), str(file))
    elif args.pretrained_transformer_path is not None:
        initialise_transformer(transformer, args.pretrained_transformer_path, args.load_internal_llm)
    if args.gradient_checkpointing:
        language_model(transformer).gradient_checkpointing_enable()
    if args.compile:
        compile_transformer(transformer)
    return transformer.train()


def new_transformer(args: GptArgs, layout: TokenLayout) -> Transformer:
    """Build a transformer of the architecture in the flags, with random weights."""
    config = read_llama_config(args.config_path)
    return build_transformer(
        adapt_llama_config(config, layout, "--segment_length", args.llama_attn_drop),
        layout,
        action_dim=args.action_dim if args.action_conditioned else None,
        reward_prediction=args.reward_prediction,
        action_recon=args.action_recon,
        success_prediction=args.success_prediction,
    )


def build_own_history(args: GptArgs, tokenizer: CompressiveVQModel, model: nn.Module) -> OwnHistory | None:
    """Return the settings of own histories; None where there can be none, UserError if the run is to train on them."""
    codebook = tokenizer.dynamics_quantize.embedding.weight
    still_code = find_still_code(codebook)
    if still_code is not None and not is_sharded(model):
        chosen_from = codebook if args.history_rule == "expected_code" else None
        return OwnHistory(still_code, args.history_passes, args.history_from_start, chosen_from)
    if args.history == "own" and still_code is None:
        raise UserError(
            "--history own begins from a future that stands still, and the tokenizer in "
            f"{args.pretrained_model_name_or_path} has no code for that: train it with --still_weight, or "
            "use --stale_tokens"
        )
    if args.history == "own":
        raise UserError("--history own needs whole weights in every process: use DDP in place of FSDP")
    return None


def build_batches(
    args: GptArgs, run: Run, tokenizer: CompressiveVQModel, layout: TokenLayout
) -> tuple[Loader | None, Loader | None]:
    """Build the training batches, if it trains, and fixed validation batches."""
    eval_batch_size = args.eval_batch_size
    if args.token_store is None:
        validated = pixel_config(args), run, eval_batch_size, args.use_eval_dataset
        if args.eval_only:
            return None, clip_batches.build_validation_loader(*validated)
        return clip_batches.build_clip_loaders(*validated)
    rank, world_size = run.accelerator.process_index, run.accelerator.num_processes
    train_store = open_token_store(args.token_store, args, tokenizer, layout)
    train_batches = TokenLoader(train_store, args.per_device_train_batch_size, run.seed, rank, world_size)
    if args.eval_token_store is None:
        logger.warning("no validation: --token_store without --eval_token_store")
        return train_batches, None
    eval_store = open_token_store(args.eval_token_store, args, tokenizer, layout)
    eval_batches = TokenLoader(eval_store, eval_batch_size, VALIDATION_SEED, rank, world_size)
    return train_batches, eval_batches


def pixel_config(args: GptArgs) -> DataConfig:
    kind = segment_kind(goal_conditioned=args.goal_conditioned)
    segment = SegmentSpec(kind, args.segment_length, args.context_length)
    return replace(
        clip_batches.clip_config(args, segment, args.per_device_train_batch_size),
        load_action=args.action_conditioned,
        load_reward=args.reward_prediction,
        load_success=args.success_prediction,
        action_dim=args.action_dim if args.action_conditioned else None,
        action_spaces=find_action_spaces(args),
    )


def build_evaluation(args: GptArgs) -> EvaluationClips:
    """Return the clips that an evaluation-only run scores, the same ones for any number of processes."""
    # another episode in the place of a bad one would be scored under the wrong name
    config = replace(pixel_config(args), whole_clips=True, on_bad_episode="error")
    at_most = args.max_eval_iters * args.eval_batch_size
    if args.use_eval_dataset:
        return build_benchmark_evaluation(config, at_most)
    return build_evaluation_clips(config, "test", None, VALIDATION_SEED, at_most)


def open_token_store(path: str, args: GptArgs, tokenizer: CompressiveVQModel, layout: TokenLayout) -> TokenStore:
    """Open a token store after checking that it holds what this run needs.

    Clips that are too short or of another tokenizer, and missing actions or rewards, are UserErrors.
    """
    store = TokenStore(path, args.segment_length)
    if store.meta.layout != layout:
        raise UserError(
            f"{path} holds clips of {store.meta.layout.context_frames} context and {store.meta.layout.future_frames} "
            f"future frames with {store.meta.layout.vocab_size} ids; this run asks for {layout.context_frames}, "
            f"{layout.future_frames} and {layout.vocab_size}: change --context_length or --segment_length, or the store"
        )
    store.check_tokenizer(tokenizer.state_dict())
    if args.action_conditioned and store.meta.action_dim != args.action_dim:
        raise UserError(f"{path} has actions of dimension {store.meta.action_dim}, not --action_dim {args.action_dim}")
    if args.action_conditioned and not same_encoding(store.meta.action_spaces, find_action_spaces(args)):
        raise UserError(f"{path} has other action spaces than {args.token_store}: make it again with the same")
    if args.reward_prediction and not store.meta.has_rewards:
        raise UserError(f"--reward_prediction needs rewards, and {path} has none")
    if args.success_prediction and not store.meta.has_successes:
        raise UserError(f"--success_prediction needs successes, and {path} has none")
    return store


def build_metadata(args: GptArgs, tokenizer: CompressiveVQModel) -> ModelMetadata:
    """Make metadata from the flags; sampling options are those of the starting point, if it has any."""
    stated, spaces = starting_metadata(args), find_action_spaces(args)
    known: dict[str, Any] = {} if stated is None else {"generation": stated.generation}
    if stated is not None and stated.action_spaces not in (None, spaces):
        logger.warning("%s has other action spaces than this run", args.pretrained_transformer_path)
    reads_raw = args.action_conditioned and spaces is None
    if stated is not None and not args.eval_only and not args.load_internal_llm:
        if args.reward_prediction and stated.reward_prediction and stated.symlog != args.symlog:
            logger.warning("the start's reward head %s --symlog", "was trained with" if stated.symlog else "knows no")
        if reads_raw and stated.action_normalization is not None:
            logger.warning("the start has learned from normalised actions, and this run reads them as they are")
    if stated is not None and args.eval_only and reads_raw:  # training reads actions as they are
        known["action_normalization"] = stated.action_normalization
    return ModelMetadata(
        resolution=tokenizer.config.resolution,
        context_length=args.context_length,
        segment_length=args.segment_length,
        dataset_step=dataset_step(args),
        action_dim=args.action_dim if args.action_conditioned else None,
        action_spaces=spaces,
        reward_prediction=args.reward_prediction,
        success_prediction=args.success_prediction,
        symlog=args.symlog,
        goal_conditioned=args.goal_conditioned,
        **known,
    )


def dataset_step(args: GptArgs) -> int | None:
    """Return the native frames between the frames of a clip; None if the datasets of the mix differ in it."""
    if args.token_store is not None:
        meta = read_description(args.token_store, args.segment_length)
        names, video_stepsize = meta.datasets, meta.video_stepsize
    else:
        mix = resolve_mix(args.oxe_data_mixes_type, args.dataset_path)
        names, video_stepsize = tuple(name for name, _ in mix), args.video_stepsize
    steps = {dataset_info(name).step(video_stepsize) for name in names}
    return steps.pop() if len(steps) == 1 else None
