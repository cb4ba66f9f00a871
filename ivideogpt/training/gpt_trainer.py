"""Training of the transformer: predict the tokens of future frames, and rewards if asked.

Dimension keys: B clips, T = t + F frames, t context frames, F future frames, L tokens, D action dimension.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ivideogpt.data.catalog import dataset_info
from ivideogpt.data.clips import ClipBatch, DataConfig
from ivideogpt.data.dataset_mixes import resolve_mix
from ivideogpt.data.loaders import build_loader
from ivideogpt.data.segments import SegmentSpec, segment_kind
from ivideogpt.data.token_store import TokenBatch, TokenLoader, TokenStore
from ivideogpt.data.transforms import STRONG_AUGMENTATION, Augmentation
from ivideogpt.errors import UserError
from ivideogpt.evaluation.video_prediction import predict_future
from ivideogpt.evaluation.visualize import contact_sheet, sample_rows
from ivideogpt.layout import IGNORED_LABEL, TokenLayout
from ivideogpt.losses import LossTerms, transformer_loss
from ivideogpt.pretrained import (
    TRANSFORMER_WEIGHTS,
    ModelMetadata,
    Transformer,
    build_transformer,
    initialise_transformer,
    language_model,
    load_tokenizer,
    read_llama_config,
    save_transformer,
)
from ivideogpt.state_dicts import load_strict, read_tensors
from ivideogpt.training.args import GptArgs
from ivideogpt.training.checkpoints import TRANSFORMER_CHECKPOINTS, Checkpoints, RandomState
from ivideogpt.training.metrics import MetricWindow, Pace
from ivideogpt.training.optim import build_adamw, weight_decay_groups
from ivideogpt.training.run import Run, build_run
from ivideogpt.training.schedule import TrainProgress, build_scheduler, every, validates_at
from ivideogpt.training.stream import BatchStream, Loader
from ivideogpt.transformer import HeadModelWithAction
from ivideogpt.utils.video_io import to_pixels
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.world_model import WorldModel, evaluating

logger = logging.getLogger(__name__)

VALIDATION_SEED = 0

CLIPS_SHOWN = 3


class Source(Protocol):
    """Where clips come from: what a batch is as tokens to train on, and as frames to look at."""

    def tokens(self, batch: Any) -> TokenBatch: ...

    def clips(self, batch: Any) -> ClipBatch: ...


@dataclass(frozen=True)
class PixelSource:
    """Batches are clips, which a frozen tokenizer reads in eval mode and in the run's precision."""

    tokenizer: CompressiveVQModel
    accelerator: Accelerator

    @torch.no_grad()
    def tokens(self, batch: ClipBatch) -> TokenBatch:
        with self.accelerator.autocast():
            tokens, _ = self.tokenizer.tokenize(batch.frames, self.tokenizer.context_length)
        return TokenBatch(tokens, batch.actions, batch.rewards)

    def clips(self, batch: ClipBatch) -> ClipBatch:
        return batch


@dataclass(frozen=True)
class TokenSource:
    """Batches are tokens already. Their frames are what the tokenizer makes of them."""

    tokenizer: CompressiveVQModel

    def tokens(self, batch: TokenBatch) -> TokenBatch:
        return batch

    @torch.no_grad()
    def clips(self, batch: TokenBatch) -> ClipBatch:
        frames = self.tokenizer.detokenize(batch.tokens, self.tokenizer.context_length)
        return ClipBatch(frames.clamp(0, 1), batch.actions, batch.rewards)


@dataclass(frozen=True)
class Conditioning:
    """Which parts of a batch the model is given, and in which space its rewards are."""

    actions: bool
    rewards: bool
    symlog: bool

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        rewards = batch.rewards if self.rewards else None
        if rewards is not None and self.symlog:
            rewards = rewards.sign() * rewards.abs().log1p()
        return replace(batch, actions=batch.actions if self.actions else None, rewards=rewards)


@dataclass
class GptTrainer:
    """Trains a transformer with ready-made parts. ``model`` is wrapped for the processes."""

    args: GptArgs
    run: Run
    model: nn.Module
    layout: TokenLayout
    metadata: ModelMetadata
    optimizer: Optimizer
    scheduler: LRScheduler
    batches: BatchStream
    validation_batches: Loader | None
    source: Source
    tokenizer: CompressiveVQModel
    conditioning: Conditioning
    progress: TrainProgress = field(default_factory=TrainProgress)
    window: MetricWindow = field(default_factory=MetricWindow)

    def __post_init__(self) -> None:
        self.accelerator: Accelerator = self.run.accelerator
        clips_per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        self.clips_per_step = clips_per_step * self.accelerator.num_processes
        self.pace = Pace()
        self.checkpoints = Checkpoints(
            self.run.directory,
            TRANSFORMER_CHECKPOINTS,
            write_weights=self.write_weights,
            shared={
                "optimizer": self.optimizer,
                "scheduler": self.scheduler,
                "progress": self.progress,
                **({"scaler": self.accelerator.scaler} if self.accelerator.scaler is not None else {}),
            },
            local={"window": self.window, "batches": self.batches, "random": RandomState()},
            keep_last=self.args.checkpoints_kept,
        )

    def fit(self) -> None:
        """Train to ``max_train_steps``, or until the run is asked to stop."""
        if self.run.checkpoint is not None:
            self.checkpoints.load(self.run.checkpoint)
            logger.info("resumed from %s", self.run.checkpoint)
        with self.run.progress_bar(self.progress.step, self.args.max_train_steps, self.clips_per_step) as bar:
            while self.progress.step < self.args.max_train_steps and not self.run.should_stop():
                self.window.add(self.update())
                self.progress.step += 1
                bar.update()
                self.after_step(self.progress.step)
        self.finish()

    def finish(self) -> None:
        """Final weights, or a checkpoint if the run was stopped."""
        if self.progress.step < self.args.max_train_steps:
            self.save_checkpoint()
            logger.info("stopped after step %d: go on with --resume_from_checkpoint latest", self.progress.step)
            return
        self.write_weights(self.run.directory)
        logger.info("finished: %s", self.run.directory)

    # ---- one step

    def update(self) -> dict[str, Tensor | float]:
        """One update from ``gradient_accumulation_steps`` batches."""
        num_batches = self.args.gradient_accumulation_steps
        window = MetricWindow()
        for index in range(num_batches):
            batch = self.next_tokens()
            with nullcontext() if index == num_batches - 1 else self.accelerator.no_sync(self.model):
                terms = self.loss_of(batch)
                self.accelerator.backward(terms.total / num_batches)
            window.add(terms.detached())
        metrics = window.means() | {"lr": self.scheduler.get_last_lr()[0]}
        if self.args.max_grad_norm is not None:
            metrics["grad_norm"] = self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.progress.clips += self.clips_per_step
        self.pace.add_clips(self.clips_per_step)
        return metrics

    def next_tokens(self) -> TokenBatch:
        with self.pace.timing("data"):
            batch = next(self.batches)
        with self.pace.timing("tokenize"):
            return self.source.tokens(batch)

    def loss_of(self, batch: TokenBatch) -> LossTerms:
        batch = self.conditioning(batch)
        terms = transformer_loss(self.model, batch.tokens, self.layout, batch.actions, batch.rewards)
        transformer = self.accelerator.unwrap_model(self.model)
        if not isinstance(transformer, HeadModelWithAction) or transformer.action_recon_loss is None:
            return terms
        # The model's own loss holds the weighted reconstruction of actions; what is logged as ce must not.
        weighted = (transformer.action_recon or 0.0) * transformer.action_recon_loss
        parts = {"ce": terms.parts["ce"] - weighted, "action_recon": transformer.action_recon_loss}
        return replace(terms, parts=terms.parts | parts)

    # ---- between steps

    def after_step(self, step: int) -> None:
        args, is_last = self.args, step == self.args.max_train_steps
        self.pace.step()
        if every(step, args.log_steps):
            pace = self.pace.take(args.max_train_steps - step)
            self.run.log(step, "train", self.window.take(self.accelerator) | pace)
        if validates_at(step, args.validation_steps, args.skip_first_val) or is_last:
            self.validate(step)
        if every(step, args.checkpointing_steps) or is_last:
            self.save_checkpoint()

    def validate(self, step: int) -> None:
        """Teacher-forced loss, perplexity and accuracy over the first clips of the test split, and a sampled future."""
        if self.validation_batches is None:
            return
        window = MetricWindow()
        llm = language_model(self.accelerator.unwrap_model(self.model))
        with evaluating(self.model), torch.no_grad(), latest_logits(llm) as logits:
            for batch in self.validation_batches.first(self.args.max_eval_iters):
                batch = batch.to(self.accelerator.device)
                tokens = self.source.tokens(batch)
                window.add(self.loss_of(tokens).detached())
                window.add({"accuracy": accuracy(logits[-1], self.layout.labels(tokens.tokens))})
        metrics = window.take(self.accelerator)
        self.run.log(step, "validation", metrics | {"perplexity": math.exp(metrics["ce"])})
        if self.run.is_main_process:
            self.run.log_image(step, "validation", self.picture(self.source.clips(batch)))

    def picture(self, clips: ClipBatch) -> Image.Image:
        """One sampled future of some clips beside the true one."""
        world_model = WorldModel(self.tokenizer, self.accelerator.unwrap_model(self.model), self.metadata)
        actions = None if clips.actions is None else clips.actions[:CLIPS_SHOWN]
        shown = ClipBatch(clips.frames[:CLIPS_SHOWN], actions)
        context = shown.frames[:, : self.layout.context_frames]
        predicted = torch.cat([context, predict_future(world_model, shown, seed=VALIDATION_SEED)], dim=1)
        pairs = zip(to_pixels(shown.frames), to_pixels(predicted), strict=True)
        groups = [sample_rows(truth, prediction, "prediction") for truth, prediction in pairs]
        return Image.fromarray(contact_sheet(groups, self.layout.context_frames))

    # ---- files

    def save_checkpoint(self) -> None:
        folder = self.checkpoints.save(self.progress.step)
        logger.info("saved %s", folder)

    def write_weights(self, folder: Path) -> None:
        """config.json, model.safetensors and the metadata. All processes call it: weights may be sharded."""
        tensors = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            save_transformer(self.accelerator.unwrap_model(self.model), folder, state_dict=tensors)
            self.metadata.write(folder)


@contextmanager
def latest_logits(llm: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds the logits (B, L, vocabulary) of the language model's latest forward pass."""
    latest: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, outputs: Any) -> None:
        latest[:] = [outputs.logits]

    hook = llm.register_forward_hook(keep)
    try:
        yield latest
    finally:
        hook.remove()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of labelled tokens that are the likeliest ones; ``labels[:, i]`` is predicted at position i - 1."""
    predicted, labels = logits[:, :-1].argmax(dim=-1), labels[:, 1:]
    labelled = labels != IGNORED_LABEL
    return (predicted == labels)[labelled].float().mean()


# ---- construction


def build_gpt_trainer(args: GptArgs) -> GptTrainer:
    """Everything that ``train_gpt.py`` needs. Writes nothing."""
    run = build_run(args, TRANSFORMER_CHECKPOINTS)
    accelerator = run.accelerator
    tokenizer = build_frozen_tokenizer(args).to(accelerator.device)
    layout = tokenizer.layout(args.segment_length - args.context_length)
    train_batches, validation_batches, source = build_batches(args, run, tokenizer, layout)
    transformer = build_model(args, layout, run.checkpoint)
    optimizer = build_adamw(weight_decay_groups(transformer, args.weight_decay, args.embed_no_wd), args.learning_rate)
    updates = args.max_train_steps - args.start_completed_steps
    scheduler = build_scheduler(args.lr_scheduler_type, optimizer, args.num_warmup_steps, updates)
    model, prepared_optimizer = accelerator.prepare(transformer, optimizer)
    run.facts["transformer"] = {
        "config": language_model(transformer).config.to_dict(),
        "parameters": sum(parameter.numel() for parameter in transformer.parameters()),
    }
    return GptTrainer(
        args=args,
        run=run,
        model=model,
        layout=layout,
        metadata=build_metadata(args, tokenizer),
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        batches=BatchStream(train_batches, accelerator.device),
        validation_batches=validation_batches,
        source=source,
        tokenizer=tokenizer,
        conditioning=Conditioning(args.action_conditioned, args.reward_prediction, args.symlog),
        progress=TrainProgress(step=args.start_completed_steps),
    )


def build_frozen_tokenizer(args: GptArgs) -> CompressiveVQModel:
    tokenizer = load_tokenizer(args.pretrained_model_name_or_path)
    if tokenizer.context_length != args.context_length:
        tokenizer.set_context_length(args.context_length)
    if tokenizer.config.resolution != args.resolution:
        resolution = tokenizer.config.resolution
        raise UserError(f"the tokenizer is for {resolution} px, not {args.resolution}: give --resolution {resolution}")
    return tokenizer.requires_grad_(False)


def build_model(args: GptArgs, layout: TokenLayout, checkpoint: Path | None) -> Transformer:
    """A new transformer, with the weights of the run's checkpoint or of the starting point if there is one."""
    config = read_llama_config(args.config_path)
    if layout.sequence_length > config.max_position_embeddings:
        fits = layout.context_frames + layout.future_frames_that_fit(config.max_position_embeddings)
        raise UserError(
            f"--segment_length {args.segment_length} takes {layout.sequence_length} tokens, but the transformer has "
            f"{config.max_position_embeddings} positions: at most {fits} frames fit"
        )
    if args.llama_attn_drop is not None:
        config.attention_dropout = args.llama_attn_drop
    transformer = build_transformer(
        config,
        layout,
        action_dim=args.action_dim if args.action_conditioned else None,
        reward_prediction=args.reward_prediction,
        action_recon=args.action_recon,
    )
    if checkpoint is not None:
        file = checkpoint / TRANSFORMER_WEIGHTS
        load_strict(transformer, read_tensors(file), str(file))
    elif args.pretrained_transformer_path is not None:
        initialise_transformer(transformer, args.pretrained_transformer_path, args.load_internal_llm)
    if args.gradient_checkpointing:
        language_model(transformer).gradient_checkpointing_enable()
    return transformer.train()


def build_batches(
    args: GptArgs, run: Run, tokenizer: CompressiveVQModel, layout: TokenLayout
) -> tuple[Loader, Loader | None, Source]:
    """Training batches, validation batches that are the same every time, and what either is made of."""
    place = {"rank": run.accelerator.process_index, "world_size": run.accelerator.num_processes}
    eval_batch_size = args.per_device_eval_batch_size or args.per_device_train_batch_size
    if args.token_store is None:
        config = clip_config(args)
        return (
            build_loader(config, "train", run.seed, **place),
            build_loader(replace(config, batch_size=eval_batch_size), "test", VALIDATION_SEED, **place),
            PixelSource(tokenizer, run.accelerator),
        )
    train_store = open_token_store(args.token_store, args, tokenizer, layout)
    train_batches = TokenLoader(train_store, args.per_device_train_batch_size, run.seed, **place)
    if args.eval_token_store is None:
        logger.warning("no validation: --token_store without --eval_token_store")
        return train_batches, None, TokenSource(tokenizer)
    eval_store = open_token_store(args.eval_token_store, args, tokenizer, layout)
    return train_batches, TokenLoader(eval_store, eval_batch_size, VALIDATION_SEED, **place), TokenSource(tokenizer)


def clip_config(args: GptArgs) -> DataConfig:
    augmentation = STRONG_AUGMENTATION if args.strong_aug else Augmentation()
    kind = segment_kind(goal_conditioned=args.goal_conditioned)
    return DataConfig(
        dataset_path=args.dataset_path,
        mix=args.oxe_data_mixes_type,
        segment=SegmentSpec(kind, args.segment_length, args.context_length),
        video_stepsize=args.video_stepsize,
        image_size=args.resolution,
        batch_size=args.per_device_train_batch_size,
        num_workers=args.dataloader_num_workers,
        augmentation=None if args.no_aug else augmentation,
        dataset_size=args.dataset_size,
        load_action=args.action_conditioned,
        load_reward=args.reward_prediction,
        action_dim=args.action_dim if args.action_conditioned else None,
        sthsth_root_path=args.sthsth_root_path,
    )


def open_token_store(path: str, args: GptArgs, tokenizer: CompressiveVQModel, layout: TokenLayout) -> TokenStore:
    """A store that holds what this run asks for.

    Raises:
        UserError: its clips are of another shape, or another tokenizer made them, or it lacks actions or rewards.
    """
    store = TokenStore(path)
    if store.meta.layout != layout:
        raise UserError(
            f"{path} holds clips of {store.meta.layout.context_frames} context and {store.meta.layout.future_frames} "
            f"future frames with {store.meta.layout.vocab_size} ids; this run asks for {layout.context_frames}, "
            f"{layout.future_frames} and {layout.vocab_size}: change --context_length or --segment_length, or the store"
        )
    store.check_tokenizer(tokenizer.state_dict())
    if args.action_conditioned and store.meta.action_dim != args.action_dim:
        raise UserError(f"{path} has actions of dimension {store.meta.action_dim}, not --action_dim {args.action_dim}")
    if args.reward_prediction and not store.meta.has_rewards:
        raise UserError(f"--reward_prediction needs rewards, and {path} has none")
    return store


def build_metadata(args: GptArgs, tokenizer: CompressiveVQModel) -> ModelMetadata:
    return ModelMetadata(
        resolution=tokenizer.config.resolution,
        context_length=args.context_length,
        segment_length=args.segment_length,
        dataset_step=dataset_step(args),
        action_dim=args.action_dim if args.action_conditioned else None,
        reward_prediction=args.reward_prediction,
        symlog=args.symlog,
        goal_conditioned=args.goal_conditioned,
    )


def dataset_step(args: GptArgs) -> int | None:
    """Native frames between the frames of a clip; None if the datasets of the mix differ in it."""
    if args.token_store is not None:
        meta = TokenStore(args.token_store).meta
        names, video_stepsize = meta.datasets, meta.video_stepsize
    else:
        mix = resolve_mix(args.oxe_data_mixes_type, Path(args.dataset_path) if args.dataset_path else None)
        names, video_stepsize = tuple(name for name, _ in mix), args.video_stepsize
    steps = {dataset_info(name).step(video_stepsize) for name in names}
    return steps.pop() if len(steps) == 1 else None
