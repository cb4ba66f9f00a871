"""Training of the tokenizer: reconstruct clips from their tokens.

Dimension keys: B clips, T = t + F frames, t context frames, F future frames, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ivideogpt.data.clips.loaders import ClipLoader
from ivideogpt.evaluation.visualize import Row, contact_sheet, error_frames
from ivideogpt.files import atomic_file
from ivideogpt.losses import LossTerms, TokenizerLoss, moving_patches
from ivideogpt.metrics.frame_metrics import frame_psnr
from ivideogpt.runs.averages import MetricAverager
from ivideogpt.runs.state import RandomState
from ivideogpt.runs.throughput import Throughput
from ivideogpt.training.common.args import TokenizerArgs
from ivideogpt.training.common.checkpoints import TOKENIZER_CHECKPOINTS, Checkpoints
from ivideogpt.training.common.clip_batches import BatchStream
from ivideogpt.training.common.optim import EmaWeights, SoundUpdates, accumulating, advance, gradient_norms
from ivideogpt.training.common.run import Run
from ivideogpt.training.common.schedule import TrainProgress, validates_at, within_phase_pair
from ivideogpt.training.tokenizer.codebooks import Codebooks
from ivideogpt.training.tokenizer.gan import GanLoss
from ivideogpt.video_io import to_pixels
from ivideogpt.vq_model import CompressiveVQOutput
from ivideogpt.world_model import evaluating

logger = logging.getLogger(__name__)

WEIGHTS_FOLDER = "unwrapped_model"
DISCRIMINATOR_WEIGHTS = "discriminator"
AVERAGE_FOLDER = "ema_model"
CLIPS_TO_ALIGN = 32
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
    codebooks: Codebooks
    fresh_codebooks: frozenset[str]  # names of those that know nothing yet
    average: EmaWeights | None  # None: what is trained is what is used
    gan_loss: GanLoss | None  # None: no discriminator takes part
    clips: BatchStream
    validation_clips: ClipLoader
    progress: TrainProgress = field(default_factory=TrainProgress)
    averager: MetricAverager = field(default_factory=MetricAverager)

    def __post_init__(self) -> None:
        self.accelerator: Accelerator = self.run.accelerator
        clips_per_update = self.args.train_batch_size * self.args.gradient_accumulation_steps
        self.clips_per_update = clips_per_update * self.accelerator.num_processes
        self.throughput = Throughput()
        self.updates = SoundUpdates("tokenizer", self.optimizer, self.accelerator)
        self.shown: Tensor | None = None  # a few of the latest training clips

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of the run, made when its folder is certain."""
        return Checkpoints(
            self.run.directory,
            TOKENIZER_CHECKPOINTS,
            write_weights=self.write_checkpoint_weights,
            shared={
                "optimizer": self.optimizer,
                "scheduler": self.scheduler,
                "progress": self.progress,
                "context_means": self.codebooks.context.means,
                "dynamics_means": self.codebooks.dynamics.means,
                **(self.gan_loss.state() if self.gan_loss is not None else {}),
                "average": self.average,
                "scaler": self.accelerator.scaler,
            },
            local={
                "context_counts": self.codebooks.context.counts,
                "dynamics_counts": self.codebooks.dynamics.counts,
                "window": self.averager,
                "clips": self.clips,
                "random": RandomState(),
            },
            keep_last=self.args.checkpoints_kept,
        )

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the networks that take memory, by name."""
        yield "tokenizer", self.accelerator.unwrap_model(self.model)
        if self.gan_loss is not None:
            yield "discriminator", self.accelerator.unwrap_model(self.gan_loss.discriminator)
        if self.loss.lpips is not None:
            yield "LPIPS", self.loss.lpips

    def fit(self) -> None:
        """Train to ``max_train_steps``, or until the run is asked to stop."""
        self.start()
        clips_per_step = self.clips_per_update / 2  # every other step is the discriminator's
        progress_bar = self.run.progress_bar(self.progress.step, self.args.max_train_steps, clips_per_step)
        with progress_bar as bar, self.run.saving_at_lost_batch(self.save_checkpoint):
            while self.progress.step < self.args.max_train_steps and not self.run.should_stop():
                self.run_phase()
                self.progress.step += 1
                bar.update()
                self.after_step(self.progress.step)
        self.finish()

    def start(self) -> None:
        """Go on from a checkpoint, or prepare a new model."""
        if self.run.checkpoint is not None:
            pairs = [(self.optimizer, self.scheduler)]
            if self.gan_loss is not None:
                pairs.append((self.gan_loss.optimizer, self.gan_loss.scheduler))
            self.run.resume(self.checkpoints, pairs)
            return
        if self.args.align_to_context:
            logger.info("aligning the halves for future frames to the context")
            self.align_to_context()
        if self.args.restart_dead_codes and self.fresh_codebooks:
            logger.info("initialising from data: codebook of %s", " and of ".join(sorted(self.fresh_codebooks)))
            self.codebooks.initialise(self.latents_of_batches(), self.fresh_codebooks)

    @torch.no_grad()
    def align_to_context(self) -> None:
        """Align the tokenizer with the first clips of the first process."""
        model = self.accelerator.unwrap_model(self.model)
        batches = [self.next_frames() for _ in range(-(-CLIPS_TO_ALIGN // self.args.train_batch_size))]
        context = torch.cat([split(frames, self.args.context_length)[0] for frames in batches])
        model.align_to_context(context)
        for parameter in model.parameters():
            parameter.copy_(broadcast(parameter.detach()))

    def finish(self) -> None:
        """Write final weights, or a checkpoint if the run was stopped."""
        if self.progress.step < self.args.max_train_steps:
            self.save_checkpoint()
            self.run.stopped_after(self.progress.step)
            return
        self.updates.check_end()
        with self.averaged():
            self.write_weights(self.run.directory)
            self.write_weights(self.run.directory / WEIGHTS_FOLDER)
        self.write_discriminator(self.run.directory / WEIGHTS_FOLDER)
        logger.info("finished: %s", self.run.directory / WEIGHTS_FOLDER)

    # ---- one step

    def run_phase(self) -> None:
        """Update the generator after an even number of steps, else the discriminator, once it has started."""
        if self.progress.step % 2 == 0:
            self.averager.add(self.generator_phase())
        elif self.gan_loss is not None and self.progress.step >= self.args.disc_start:
            self.averager.add(self.discriminator_phase())

    def generator_phase(self) -> dict[str, Tensor | float]:
        """Update the tokenizer once from ``gradient_accumulation_steps`` batches."""
        num_batches = self.args.gradient_accumulation_steps
        averager = MetricAverager()
        for index in range(num_batches):
            with self.throughput.timing("data"):
                frames = self.next_frames()
            moving = None
            if self.args.still_weight:
                # recorded robots seldom show a future frame in which nothing has moved
                t = self.args.context_length
                frames = torch.cat([frames, frames[:, t - 1 : t]], dim=1)
                moving = moving_patches(frames, t)
            is_last = index == num_batches - 1
            with self.throughput.timing("gradients"), accumulating(self.accelerator, self.model, is_last):
                terms, output = self.loss_of(frames)
                if self.gan_loss is not None and self.progress.step >= self.args.disc_start:
                    last_layer = self.accelerator.unwrap_model(self.model).cond_decoder.conv_out.weight
                    terms = self.gan_loss.added_to(terms, reconstructed_frames(output), last_layer)
                self.accelerator.backward(terms.total / num_batches)
            self.codebooks.observe(output, moving)
            averager.add(terms.detached())
        means = averager.means()
        metrics = means | self.update(means["loss"])
        if self.args.restart_dead_codes and within_phase_pair(self.progress.step + 1, self.args.restart_dead_codes):
            metrics |= self.codebooks.restart_dead_codes(output, self.optimizer, moving)
        self.shown = frames[:CLIPS_SHOWN]
        return metrics

    def discriminator_phase(self) -> dict[str, Tensor | float]:
        """Update the discriminator once from ``gradient_accumulation_steps`` batches of its own."""
        assert self.gan_loss is not None
        num_batches = self.args.gradient_accumulation_steps
        averager = MetricAverager()
        for index in range(num_batches):
            with self.throughput.timing("data"):
                frames = self.next_frames()
            with self.throughput.timing("gradients"):
                with torch.no_grad():
                    output = reconstruct(self.model, frames, self.args.context_length)
                real = torch.cat([part.flatten(0, 1) for part in split(frames, self.args.context_length)])
                is_last = index == num_batches - 1
                averager.add(self.gan_loss.backward(real, reconstructed_frames(output), num_batches, is_last))
        self.count_clips()
        with self.throughput.timing("optimizer"):
            means = averager.means()
            return means | self.gan_loss.update(means["disc_loss"])

    def loss_of(self, frames: Tensor) -> tuple[LossTerms, Any]:
        """Compute the loss of clips (B, T, 3, H, W); also return the tokenizer's output."""
        output = reconstruct(self.model, frames, self.args.context_length)
        return self.loss(frames, output, self.args.context_length), output

    def update(self, loss: Tensor) -> dict[str, Tensor | float]:
        """Clip gradients, step the optimizer, advance the schedule."""
        metrics: dict[str, Tensor | float] = {"lr": self.scheduler.get_last_lr()[0]}
        with self.throughput.timing("optimizer"):
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            metrics["grad_norm"] = norm
        if within_phase_pair(self.progress.step + 1, self.args.log_grad_norm_steps):
            # after clipping, which takes the factor of 16-bit training out of gradients
            metrics |= gradient_norms(self.accelerator.unwrap_model(self.model))
        with self.throughput.timing("optimizer"):
            metrics["skipped_updates"] = skipped = advance(self.updates, self.scheduler, loss, norm)
            if self.average is not None:
                self.average.update(skipped)
        self.count_clips()
        return metrics

    def count_clips(self) -> None:
        self.progress.clips += self.clips_per_update
        self.throughput.add_clips(self.clips_per_update)

    def next_frames(self) -> Tensor:
        return next(self.clips).frames

    def latents_of_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield encoder outputs of training batches without end, to initialise codebooks from."""
        model = self.accelerator.unwrap_model(self.model)
        while True:
            frames = self.next_frames()
            context, future = split(frames, self.args.context_length)
            with evaluating(model), torch.no_grad(), self.accelerator.autocast():
                context_latents, future_latents = model.latents(context.flatten(0, 1), future.flatten(0, 1))
            if self.args.still_weight:
                future_latents = future_latents[moving_patches(frames, self.args.context_length).flatten()]
            yield context_latents, future_latents  # not inside: what runs between two batches would run in eval mode

    # ---- between steps

    def after_step(self, step: int) -> None:
        args = self.args
        self.throughput.step()
        if step % args.log_steps == 0 and (metrics := self.run.mean_over_processes(self.averager.take())):
            metrics |= self.codebooks.take_statistics() | self.throughput.take(args.max_train_steps - step)
            self.run.log(step, "train", metrics)
        if step % args.log_image_steps == 0 and self.shown is not None:
            self.run.log_image(step, "train", self.picture(self.shown))
        if validates_at(step, args.validation_steps, args.skip_first_val):
            self.validate(step)
        if step % args.checkpointing_steps == 0 or step == args.max_train_steps:
            self.save_checkpoint()

    def validate(self, step: int) -> None:
        """Log losses and PSNR over the first clips of the test split, and an image."""
        averager = MetricAverager()
        with self.averaged(), evaluating(self.model), torch.no_grad():
            for batch in self.validation_clips.first(self.args.max_eval_iters):
                frames = batch.to(self.accelerator.device).frames
                terms, output = self.loss_of(frames)
                context, future = (part.flatten(0, 1) for part in split(frames, self.args.context_length))
                psnr_context = frame_psnr(context, output.ref_sample.clamp(0, 1)).mean()
                psnr_future = frame_psnr(future, output.sample.clamp(0, 1)).mean()
                averager.add(terms.detached() | {"psnr_context": psnr_context, "psnr_future": psnr_future})
            picture = self.picture(frames[:CLIPS_SHOWN])
        self.run.log(step, "validation", self.run.mean_over_processes(averager.take()))
        self.run.log_image(step, "validation", picture)

    def averaged(self) -> AbstractContextManager[None]:
        """Apply the weights that the run is validated with."""
        return nullcontext() if self.average is None else self.average.applied()

    def picture(self, frames: Tensor) -> Image.Image:
        """Render truth, reconstruction, frame difference and error of some clips (B, T, 3, H, W)."""
        with evaluating(self.model), torch.no_grad():
            output = reconstruct(self.model, frames, self.args.context_length)
        context, future = (part.unflatten(0, (len(frames), -1)) for part in (output.ref_sample, output.sample))
        change = (frames - frames.roll(1, dims=1)).abs()
        change[:, 0] = 0
        clips = zip(*map(to_pixels, (frames, torch.cat([context, future], dim=1), change)), strict=True)
        names = ("truth", "reconstruction", "frame difference", "error")
        groups = [list(map(Row, names, (*videos, error_frames(videos[0], videos[1])))) for videos in clips]
        return Image.fromarray(contact_sheet(groups, self.args.context_length))

    # ---- files

    def save_checkpoint(self) -> None:
        """Save; a failure is only logged unless the run is stopped here. At its end the final weights still come."""
        is_stopped = self.progress.step < self.args.max_train_steps and self.run.stop_signal.number != 0
        self.checkpoints.save_or_report(self.progress.step, must_succeed=is_stopped)

    def write_checkpoint_weights(self, folder: Path) -> None:
        """Write the weights to continue training with, and their EMA."""
        self.write_weights(folder / WEIGHTS_FOLDER)
        self.write_discriminator(folder / WEIGHTS_FOLDER)
        if self.average is not None:
            with self.averaged():
                self.write_weights(folder / AVERAGE_FOLDER)

    def write_discriminator(self, folder: Path) -> None:
        """Write the discriminator, if there is one, in the format of ``--discriminator_config_name_or_path``."""
        if self.gan_loss is not None and self.accelerator.is_main_process:
            with atomic_file(folder / DISCRIMINATOR_WEIGHTS) as file:
                torch.save(self.accelerator.unwrap_model(self.gan_loss.discriminator).state_dict(), file)

    def write_weights(self, folder: Path) -> None:
        """Write config.json and the weights in the published format. All processes call it."""
        tensors = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            self.accelerator.unwrap_model(self.model).save_pretrained(folder, tensors=tensors)


def split(frames: Tensor, context_length: int) -> tuple[Tensor, Tensor]:
    """Split clips into context and future frames."""
    return frames[:, :context_length], frames[:, context_length:]


def reconstruct(model: nn.Module, frames: Tensor, context_length: int) -> Any:
    """Run the tokenizer over clips (B, T, 3, H, W), with all outputs that losses need."""
    context, future = split(frames, context_length)
    flat = {"sample": context.flatten(0, 1), "dyn_sample": future.flatten(0, 1)}
    return model(**flat, segment_len=future.shape[1], return_loss=True)


def reconstructed_frames(output: CompressiveVQOutput) -> Tensor:
    """Return all frames of all clips, (B T, 3, H, W): the context's, then the future's."""
    return torch.cat([output.ref_sample, output.sample])
