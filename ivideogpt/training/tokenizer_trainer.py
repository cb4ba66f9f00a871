"""Training of the tokenizer: reconstruct clips from their tokens.

Dimension keys: B clips, T = t + F frames, t context frames, F future frames, H W pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ivideogpt.data.clips import DataConfig
from ivideogpt.data.loaders import ClipLoader, build_loader
from ivideogpt.data.segments import SegmentSpec, segment_kind
from ivideogpt.data.transforms import STRONG_AUGMENTATION, Augmentation
from ivideogpt.errors import UserError
from ivideogpt.evaluation.visualize import Row, contact_sheet, error_frames
from ivideogpt.losses import LossTerms, TokenizerLoss, TokenizerLossConfig
from ivideogpt.lpips import LPIPS
from ivideogpt.pretrained import TOKENIZER_WEIGHTS, load_tokenizer
from ivideogpt.state_dicts import save_tensors
from ivideogpt.training.args import PROJECT, TokenizerArgs
from ivideogpt.training.checkpoints import TOKENIZER_CHECKPOINTS, Checkpoints, RandomState
from ivideogpt.training.codebooks import Codebook, Codebooks
from ivideogpt.training.metrics import MetricWindow, Pace
from ivideogpt.training.optim import build_adamw, gradient_norms, trainable_parameters
from ivideogpt.training.run import Run, build_run
from ivideogpt.training.schedule import (
    Phase,
    PhaseSchedule,
    TrainProgress,
    build_scheduler,
    every,
    validates_at,
    within_phase_pair,
)
from ivideogpt.training.stream import BatchStream
from ivideogpt.utils.video_io import to_pixels
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.world_model import evaluating

logger = logging.getLogger(__name__)

CONFIG_OF_RESOLUTION = {64: PROJECT / "configs" / "ctx_vae64", 256: PROJECT / "configs" / "ctx_vae"}
WEIGHTS_FOLDER = "unwrapped_model"
VALIDATION_SEED = 0
CLIPS_SHOWN = 3


@dataclass
class TokenizerTrainer:
    """Trains a tokenizer with ready-made parts. ``model`` is wrapped for the processes, ``codebooks`` are its own."""

    args: TokenizerArgs
    run: Run
    model: nn.Module
    loss: TokenizerLoss
    optimizer: Optimizer
    scheduler: LRScheduler
    schedule: PhaseSchedule
    codebooks: Codebooks
    clips: BatchStream
    validation_clips: ClipLoader
    progress: TrainProgress = field(default_factory=TrainProgress)
    window: MetricWindow = field(default_factory=MetricWindow)

    def __post_init__(self) -> None:
        self.accelerator: Accelerator = self.run.accelerator
        clips_per_phase = self.args.train_batch_size * self.args.gradient_accumulation_steps
        self.clips_per_phase = clips_per_phase * self.accelerator.num_processes
        self.pace = Pace()
        self.shown: Tensor | None = None  # a few of the latest training clips
        self.checkpoints = Checkpoints(
            self.run.directory,
            TOKENIZER_CHECKPOINTS,
            write_weights=lambda folder: self.write_weights(folder / WEIGHTS_FOLDER),
            shared={
                "optimizer": self.optimizer,
                "scheduler": self.scheduler,
                "progress": self.progress,
                "codebooks": self.codebooks,
                **({"scaler": self.accelerator.scaler} if self.accelerator.scaler is not None else {}),
            },
            local={"window": self.window, "clips": self.clips, "random": RandomState()},
            keep_last=self.args.checkpoints_kept,
        )

    def fit(self) -> None:
        """Train to ``max_train_steps``, or until the run is asked to stop."""
        self.start()
        clips_per_step = self.clips_per_phase / 2  # every other step is the discriminator's
        with self.run.progress_bar(self.progress.step, self.args.max_train_steps, clips_per_step) as bar:
            while self.progress.step < self.args.max_train_steps and not self.run.should_stop():
                self.run_phase()
                self.progress.step += 1
                bar.update()
                self.after_step(self.progress.step)
        self.finish()

    def start(self) -> None:
        """Go on from a checkpoint, or prepare a new model."""
        if self.run.checkpoint is not None:
            self.checkpoints.load(self.run.checkpoint)
            logger.info("resumed from %s", self.run.checkpoint)
        elif self.args.restart_dead_codes and self.args.pretrained_model_name_or_path is None:
            logger.info("initialising the codebooks from data")
            self.codebooks.initialise(self.latents_of_batches())

    def finish(self) -> None:
        """Final weights, or a checkpoint if the run was stopped."""
        if self.progress.step < self.args.max_train_steps:
            self.save_checkpoint()
            logger.info("stopped after step %d: go on with --resume_from_checkpoint latest", self.progress.step)
            return
        self.write_weights(self.run.directory)
        self.write_weights(self.run.directory / WEIGHTS_FOLDER)
        logger.info("finished: %s", self.run.directory / WEIGHTS_FOLDER)

    # ---- one step

    def run_phase(self) -> None:
        match self.schedule.phase(self.progress.step):
            case Phase.GENERATOR:
                self.window.add(self.generator_phase())
            case Phase.DISCRIMINATOR:
                raise NotImplementedError("TokenizerArgs.validate admits no discriminator yet")
            case Phase.IDLE:
                pass

    def generator_phase(self) -> dict[str, Tensor | float]:
        """One update of the tokenizer from ``gradient_accumulation_steps`` batches."""
        num_batches = self.args.gradient_accumulation_steps
        window = MetricWindow()
        for batch in range(num_batches):
            with self.pace.timing("data"):
                frames = self.next_frames()
            with nullcontext() if batch == num_batches - 1 else self.accelerator.no_sync(self.model):
                terms, output = self.loss_of(frames)
                self.accelerator.backward(terms.total / num_batches)
            self.codebooks.observe(output)
            window.add(terms.detached())
        metrics = window.means() | self.update()
        if self.args.restart_dead_codes and within_phase_pair(self.progress.step + 1, self.args.restart_dead_codes):
            metrics |= self.codebooks.restart_dead_codes(output, self.optimizer)
        self.shown = frames[:CLIPS_SHOWN]
        return metrics

    def loss_of(self, frames: Tensor) -> tuple[LossTerms, Any]:
        """Loss of clips (B, T, 3, H, W), and the forward pass it comes from."""
        output = reconstruct(self.model, frames, self.args.context_length)
        return self.loss(frames, output), output

    def update(self) -> dict[str, Tensor | float]:
        """Clip, step, schedule."""
        metrics: dict[str, Tensor | float] = {}
        if within_phase_pair(self.progress.step + 1, self.args.log_grad_norm_steps):
            metrics |= gradient_norms(self.accelerator.unwrap_model(self.model))
        metrics["lr"] = self.scheduler.get_last_lr()[0]
        metrics["grad_norm"] = self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.progress.clips += self.clips_per_phase
        self.pace.add_clips(self.clips_per_phase)
        return metrics

    def next_frames(self) -> Tensor:
        return next(self.clips).frames

    def latents_of_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Encoder outputs of training batches, without end."""
        model = self.accelerator.unwrap_model(self.model)
        while True:
            context, future = split(self.next_frames(), self.args.context_length)
            with evaluating(model), torch.no_grad(), self.accelerator.autocast():
                yield model.latents(context.flatten(0, 1), future.flatten(0, 1))

    # ---- between steps

    def after_step(self, step: int) -> None:
        args = self.args
        self.pace.step()
        if every(step, args.log_steps):
            self.log_training(step)
        if every(step, args.log_image_steps) and self.shown is not None:
            self.run.log_image(step, "train", self.picture(self.shown))
        if validates_at(step, args.validation_steps, args.skip_first_val):
            self.validate(step)
        if every(step, args.checkpointing_steps) or step == args.max_train_steps:
            self.save_checkpoint()

    def log_training(self, step: int) -> None:
        metrics = self.window.take(self.accelerator)
        if metrics:
            metrics |= self.codebooks.take_statistics() | self.pace.take(self.args.max_train_steps - step)
            self.run.log(step, "train", metrics)

    def validate(self, step: int) -> None:
        """Losses over the first clips of the test split, and a picture."""
        window = MetricWindow()
        with evaluating(self.model), torch.no_grad():
            for batch in self.validation_clips.first(self.args.max_eval_iters):
                frames = batch.to(self.accelerator.device).frames
                window.add(self.loss_of(frames)[0].detached())
        self.run.log(step, "validation", window.take(self.accelerator))
        self.run.log_image(step, "validation", self.picture(frames[:CLIPS_SHOWN]))

    def picture(self, frames: Tensor) -> Image.Image:
        """Truth, reconstruction, frame difference and error of some clips (B, T, 3, H, W)."""
        with evaluating(self.model), torch.no_grad():
            output = reconstruct(self.model, frames, self.args.context_length)
        context, future = (part.unflatten(0, (len(frames), -1)) for part in (output.ref_sample, output.sample))
        return reconstruction_sheet(frames, torch.cat([context, future], dim=1), self.args.context_length)

    # ---- files

    def save_checkpoint(self) -> None:
        folder = self.checkpoints.save(self.progress.step)
        logger.info("saved %s", folder)

    def write_weights(self, folder: Path) -> None:
        """config.json and the weights, in the published format. All processes call it."""
        tensors = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            self.accelerator.unwrap_model(self.model).save_config(folder)
            save_tensors(tensors, folder / TOKENIZER_WEIGHTS)


def split(frames: Tensor, context_length: int) -> tuple[Tensor, Tensor]:
    """Context and future frames of clips."""
    return frames[:, :context_length], frames[:, context_length:]


def reconstruct(model: nn.Module, frames: Tensor, context_length: int) -> Any:
    """The tokenizer's forward pass over clips (B, T, 3, H, W), with everything that losses need."""
    context, future = split(frames, context_length)
    return model(
        sample=context.flatten(0, 1),
        dyn_sample=future.flatten(0, 1),
        segment_len=future.shape[1],
        return_loss=True,
    )


def reconstruction_sheet(truth: Tensor, reconstruction: Tensor, context_length: int) -> Image.Image:
    """One group of rows per clip: truth, reconstruction, frame difference, error."""
    change = (truth - truth.roll(1, dims=1)).abs()
    change[:, 0] = 0
    groups = [
        [
            Row("truth", clip),
            Row("reconstruction", reconstructed),
            Row("frame difference", difference),
            Row("error", error_frames(clip, reconstructed)),
        ]
        for clip, reconstructed, difference in zip(
            to_pixels(truth), to_pixels(reconstruction), to_pixels(change), strict=True
        )
    ]
    return Image.fromarray(contact_sheet(groups, context_length))


# ---- construction


def build_tokenizer_trainer(args: TokenizerArgs) -> TokenizerTrainer:
    """Everything that ``train_tokenizer.py`` needs. Writes nothing."""
    run = build_run(args, TOKENIZER_CHECKPOINTS)
    accelerator = run.accelerator
    train_clips, validation_clips = build_clip_loaders(args, run)
    tokenizer = build_tokenizer(args, run.checkpoint)
    loss = build_loss(args, accelerator.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.allow_tf32

    schedule = PhaseSchedule(args.max_train_steps, args.disc_start, args.start_global_step)
    optimizer = build_adamw(
        trainable_parameters(tokenizer),
        args.learning_rate * _learning_rate_scale(args, accelerator),
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        epsilon=args.adam_epsilon,
    )
    scheduler = build_scheduler(args.lr_scheduler, optimizer, args.lr_warmup_steps, schedule.generator_updates)
    model, prepared_optimizer = accelerator.prepare(tokenizer, optimizer)
    run.facts["tokenizer"] = {
        "config": json.loads(tokenizer.to_json_string()),
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        "lpips": loss.lpips is not None,
    }
    decay = args.codebook_decay or None
    codebooks = Codebooks(
        Codebook("context", tokenizer.quantize.embedding.weight, accelerator, decay),
        Codebook("dynamics", tokenizer.dynamics_quantize.embedding.weight, accelerator, decay),
    )
    return TokenizerTrainer(
        args=args,
        run=run,
        model=model,
        loss=loss,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        schedule=schedule,
        codebooks=codebooks,
        clips=BatchStream(train_clips, accelerator.device),
        validation_clips=validation_clips,
        progress=TrainProgress(step=args.start_global_step),
    )


def build_tokenizer(args: TokenizerArgs, checkpoint: Path | None) -> CompressiveVQModel:
    """From the run's checkpoint, from pretrained weights, or from a config with fresh weights."""
    if checkpoint is not None:
        model = load_tokenizer(checkpoint / WEIGHTS_FOLDER)
    elif args.pretrained_model_name_or_path is not None:
        model = load_tokenizer(args.pretrained_model_name_or_path)
    else:
        config = read_config(args.model_config_name_or_path, args.resolution)
        flags = {"context_length": args.context_length, "resolution": args.resolution}
        model = CompressiveVQModel.from_config({**config, **flags})
    if model.config.resolution != args.resolution:
        resolution = model.config.resolution
        raise UserError(f"the tokenizer is for {resolution} px, not {args.resolution}: give --resolution {resolution}")
    if model.context_length != args.context_length:
        model.set_context_length(args.context_length)
    model.set_cross_attention_dropout(args.cross_attention_dropout)
    if args.selected_params or args.codebook_decay:
        model.quantize.requires_grad_(False)
        model.dynamics_quantize.requires_grad_(False)
    return model.train().to(memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)


def read_config(path: str | None, resolution: int) -> dict[str, Any]:
    """A tokenizer's config.json (a file, or the folder it is in), or the one for a resolution."""
    if path is None and resolution not in CONFIG_OF_RESOLUTION:
        raise UserError(f"no default architecture for --resolution {resolution}: give --model_config_name_or_path")
    file = Path(path) if path is not None else CONFIG_OF_RESOLUTION[resolution]
    file = file / "config.json" if file.is_dir() else file
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--model_config_name_or_path {file}: no readable JSON file ({error})") from error


def build_clip_loaders(args: TokenizerArgs, run: Run) -> tuple[ClipLoader, ClipLoader]:
    """Training clips, and validation clips that are the same every time."""
    kind = segment_kind(args.rand_select, args.rand_shuffle)
    horizon = args.segment_horizon if kind in ("sparse_future", "shuffled") else None
    augmentation = STRONG_AUGMENTATION if args.strong_aug else Augmentation()
    config = DataConfig(
        dataset_path=args.dataset_path,
        mix=args.oxe_data_mixes_type,
        segment=SegmentSpec(kind, args.segment_length, args.context_length, horizon),
        video_stepsize=args.video_stepsize,
        image_size=args.resolution,
        batch_size=args.train_batch_size,
        num_workers=args.dataloader_num_workers,
        augmentation=None if args.no_aug else augmentation,
        dataset_size=args.dataset_size,
        sthsth_root_path=args.sthsth_root_path,
    )
    rank, world_size = run.accelerator.process_index, run.accelerator.num_processes
    return (
        build_loader(config, "train", run.seed, rank, world_size),
        build_loader(config, "test", VALIDATION_SEED, rank, world_size),
    )


def build_loss(args: TokenizerArgs, device: torch.device) -> TokenizerLoss:
    """With LPIPS if its weights are there, and a plain word if they are not."""
    config = TokenizerLossConfig(
        reconstruction=args.vae_loss,  # type: ignore[arg-type]
        recon_weight=args.recon_weight,
        perc_weight=args.perc_weight,
        balanced=args.balanced_loss,
        motion_weight=args.motion_weight,
        gradient_weight=args.gradient_weight,
    )
    if args.lpips_folder is not None:
        return TokenizerLoss(config, LPIPS.from_folder(args.lpips_folder).to(device))
    if args.perc_weight > 0:
        logger.warning("training WITHOUT the perceptual loss: no LPIPS weights in %s", args.lpips_path)
    return TokenizerLoss(config)


def _learning_rate_scale(args: TokenizerArgs, accelerator: Accelerator) -> int:
    if not args.scale_lr:
        return 1
    return accelerator.num_processes * args.train_batch_size * args.gradient_accumulation_steps
