"""Training of the transformer: predict the tokens of future frames, and rewards if asked.

Dimension keys: B clips, T = t + F frames, t context frames, F future frames, L tokens, D action dimension.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ivideogpt.data.clips.batches import ClipBatch
from ivideogpt.data.clips.evaluation_clips import EvaluationClips
from ivideogpt.data.tokens.token_store import TokenBatch
from ivideogpt.evaluation.rows import ClipRow
from ivideogpt.evaluation.video_prediction import PredictionScorer
from ivideogpt.layout import IGNORED_LABEL, TokenLayout
from ivideogpt.losses import LossTerms, transformer_loss
from ivideogpt.metadata import ModelMetadata
from ivideogpt.pretrained import Transformer, language_model, save_transformer
from ivideogpt.runs.averages import MetricAverager
from ivideogpt.runs.state import RandomState, Stateful
from ivideogpt.runs.throughput import Throughput
from ivideogpt.training.additions import history_corruption as histories
from ivideogpt.training.common.args import GptArgs
from ivideogpt.training.common.checkpoints import TRANSFORMER_CHECKPOINTS, Checkpoints
from ivideogpt.training.common.clip_batches import BatchStream, Loader
from ivideogpt.training.common.fsdp import ShardedOptimizerState, is_sharded, whole, whole_state_dict
from ivideogpt.training.common.optim import SoundUpdates, accumulating, advance
from ivideogpt.training.common.run import Run
from ivideogpt.training.common.schedule import TrainProgress, validates_at
from ivideogpt.training.transformer import sampled_validation
from ivideogpt.training.transformer.lora import Adapters
from ivideogpt.transformer import KeysAndValues
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.world_model import WorldModel, evaluating, symlog

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"
CLIPS_SHOWN = 3


@dataclass
class GptTrainer:
    """Trains a transformer with ready-made parts. ``model`` is wrapped for the processes."""

    args: GptArgs
    run: Run
    model: nn.Module
    new_transformer: Callable[[], Transformer]  # builds one of the same architecture
    adapters: Adapters | None  # None: all weights train
    layout: TokenLayout
    metadata: ModelMetadata
    optimizer: Optimizer
    scheduler: LRScheduler
    batches: BatchStream | None  # None: evaluation only
    validation_batches: Loader | None
    tokenizer: CompressiveVQModel
    scoring: Callable[[WorldModel], PredictionScorer] | None  # None: validations sample no futures
    own_history: histories.OwnHistory | None = None  # None: the tokenizer has no code that stands still
    evaluation_clips: EvaluationClips | None = None  # for a run that only evaluates
    progress: TrainProgress = field(default_factory=TrainProgress)
    averager: MetricAverager = field(default_factory=MetricAverager)

    def __post_init__(self) -> None:
        self.accelerator: Accelerator = self.run.accelerator
        clips_per_update = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        self.clips_per_update = clips_per_update * self.accelerator.num_processes
        self.throughput = Throughput()
        self.updates = SoundUpdates("transformer", self.optimizer, self.accelerator)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of the run, made when its folder is certain."""
        optimizer: Stateful = self.optimizer
        if is_sharded(self.transformer):
            optimizer = ShardedOptimizerState(self.transformer, getattr(self.optimizer, "optimizer", self.optimizer))
        return Checkpoints(
            self.run.directory,
            TRANSFORMER_CHECKPOINTS,
            write_weights=self.write_weights,
            shared={
                "optimizer": optimizer,
                "scheduler": self.scheduler,
                "progress": self.progress,
                "adapters": self.adapters,
                "scaler": self.accelerator.scaler,
            },
            local={"window": self.averager, "random": RandomState(), "batches": self.batches},
            keep_last=self.args.checkpoints_kept,
        )

    @property
    def transformer(self) -> Transformer:
        """Transformer without its wrapper."""
        return self.accelerator.unwrap_model(self.model)

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the networks that take memory, by name."""
        yield "transformer", self.transformer
        yield "tokenizer", self.tokenizer

    def usable_transformer(self) -> Transformer:
        """Return the transformer for inference: a copy if it is sharded (all processes call this) or has adapters."""
        if self.adapters is not None:
            return self.adapters.merged()
        if not is_sharded(self.transformer):
            return self.transformer
        with torch.random.fork_rng():  # initialisation must not change the run's random state
            transformer = self.new_transformer().to(self.accelerator.device)
        transformer.load_state_dict(whole_state_dict(self.transformer))
        return transformer

    def fit(self) -> None:
        """Train to ``max_train_steps``, or until the run is asked to stop."""
        if self.run.checkpoint is not None:
            self.run.resume(self.checkpoints, [(self.optimizer, self.scheduler)])
        progress_bar = self.run.progress_bar(self.progress.step, self.args.max_train_steps, self.clips_per_update)
        with progress_bar as bar, self.run.saving_at_lost_batch(self.save_checkpoint):
            while self.progress.step < self.args.max_train_steps and not self.run.should_stop():
                self.averager.add(self.update())
                self.progress.step += 1
                bar.update()
                self.after_step(self.progress.step)
        self.finish()

    def evaluate(self) -> None:
        """Validate the given weights once, and write a report if sampled futures are scored."""
        self.run.stop_signal.end_at_once()
        self.validate(self.progress.step)
        if self.scoring is not None and self.evaluation_clips is not None:
            scorer = self.scoring(self.world_model())
            if metrics := sampled_validation.report_predictions(self.run, self.args, scorer, self.evaluation_clips):
                self.run.log(self.progress.step, "evaluation", metrics)
        logger.info("finished: %s", self.run.directory)

    def finish(self) -> None:
        """Write final weights, or a checkpoint if the run was stopped."""
        if self.progress.step < self.args.max_train_steps:
            self.save_checkpoint()
            self.run.stopped_after(self.progress.step)
            return
        self.updates.check_end()
        self.write_weights(self.run.directory)
        logger.info("finished: %s", self.run.directory)

    # ---- one step

    def update(self) -> dict[str, Tensor | float]:
        """Update once from ``gradient_accumulation_steps`` batches."""
        num_batches = self.args.gradient_accumulation_steps
        averager = MetricAverager()
        for index in range(num_batches):
            batch = self.next_tokens()
            is_last = index == num_batches - 1
            with self.throughput.timing("gradients"), accumulating(self.accelerator, self.model, is_last):
                terms = self.training_loss(batch)
                self.accelerator.backward(terms.total / num_batches)
            averager.add(terms.detached())
        means = averager.means()
        metrics = means | {"lr": self.scheduler.get_last_lr()[0]}
        with self.throughput.timing("optimizer"):
            limit = math.inf if self.args.max_grad_norm is None else self.args.max_grad_norm
            metrics["grad_norm"] = norm = whole(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))
            metrics["skipped_updates"] = advance(self.updates, self.scheduler, means["loss"], norm)
        self.progress.clips += self.clips_per_update
        self.throughput.add_clips(self.clips_per_update)
        return metrics

    def next_tokens(self) -> TokenBatch:
        assert self.batches is not None
        with self.throughput.timing("data"):
            batch = next(self.batches)
        with self.throughput.timing("tokenize"):
            return self.tokens_of(batch)

    @torch.no_grad()
    def tokens_of(self, batch: ClipBatch | TokenBatch) -> TokenBatch:
        """Return a batch's tokens, and those of its actions, rewards and successes that the model is given.

        Frames are read in float32 whatever the run's precision: of bfloat16's tokens of context frames one in 27 is
        another one than sessions, evaluation and token stores see.
        """
        if isinstance(batch, TokenBatch):
            tokens = batch.tokens
        else:
            with torch.autocast(batch.frames.device.type, enabled=False):
                tokens, _ = self.tokenizer.tokenize(batch.frames, self.tokenizer.context_length)
        args = self.args
        rewards = batch.rewards if args.reward_prediction else None
        return TokenBatch(
            tokens,
            actions=batch.actions if args.action_conditioned else None,
            rewards=symlog(rewards) if rewards is not None and args.symlog else rewards,
            successes=batch.successes if args.success_prediction else None,
        )

    def training_loss(self, batch: TokenBatch) -> LossTerms:
        """Compute the loss under the history corruption of ``--history`` and ``--stale_tokens``."""
        tokens = batch.tokens
        if self.args.history != "own":
            stale_share = self.args.stale_tokens
            stale = histories.with_stale_tokens(tokens, self.layout, stale_share) if stale_share else tokens
            return self.loss_of(batch, stale)
        assert self.own_history is not None
        transformer, layout, actions = self.transformer, self.layout, batch.actions
        first = histories.sample_first_frames(len(tokens), layout, self.own_history, tokens.device)
        with self.accelerator.autocast():
            context = histories.read_context(transformer, tokens, layout, actions)
            history = histories.own_history(transformer, context, tokens, layout, actions, first, self.own_history)
        return self.loss_of(batch, history, context)

    def loss_of(
        self, batch: TokenBatch, history: Tensor | None = None, context: KeysAndValues | None = None
    ) -> LossTerms:
        """Compute a batch's loss, reading a ``history`` (B, L) if it differs, after a context that may be cached."""
        weights = self.args.reward_weight, self.args.success_weight
        given = batch.tokens, self.layout, batch.actions, batch.rewards, *weights
        return transformer_loss(self.model, *given, inputs=history, past_key_values=context, successes=batch.successes)

    def own_history_ce(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Return the cross-entropy under the model's own history, or nothing where no frame can stand still."""
        if self.own_history is None:
            return {}
        given = batch.tokens, self.layout, batch.actions, self.own_history
        with self.accelerator.autocast():
            ce = histories.evaluate_own_history(self.transformer, *given)
        return {"own_history_ce": ce}

    # ---- between steps

    def after_step(self, step: int) -> None:
        args, is_last = self.args, step == self.args.max_train_steps
        self.throughput.step()
        if step % args.log_steps == 0:
            throughput = self.throughput.take(args.max_train_steps - step)
            self.run.log(step, "train", self.run.mean_over_processes(self.averager.take()) | throughput)
        if validates_at(step, args.validation_steps, args.skip_first_val) or is_last:
            self.validate(step)
        if step % args.checkpointing_steps == 0 or is_last:
            self.save_checkpoint()

    def validate(self, step: int) -> None:
        """Log loss, perplexity and accuracy over the first clips of the test split, and scores of sampled futures."""
        if self.validation_batches is None:
            return
        averager = MetricAverager()
        world_model = self.world_model()
        scorer: PredictionScorer | None = None
        scored: list[ClipRow] = []
        if self.scoring is not None and self.evaluation_clips is None:  # a report scores futures otherwise
            scorer = self.scoring(world_model)
        llm = language_model(self.transformer)
        with evaluating(self.model), torch.no_grad(), latest_logits(llm) as logits:
            batches: Iterator[Any] = self.validation_batches.first(self.args.max_eval_iters)
            for index, batch in enumerate(batches):
                batch = batch.to(self.accelerator.device)
                tokens = self.tokens_of(batch)
                num_clips = len(tokens.tokens)
                turn = index * self.accelerator.num_processes + self.accelerator.process_index
                first = turn * self.args.eval_batch_size  # number of the batch's first clip
                averager.add(self.loss_of(tokens).detached(), num_clips)
                labels = self.layout.labels(tokens.tokens)[:, -logits[-1].shape[1] :]
                averager.add({"accuracy": accuracy(logits[-1], labels)} | self.own_history_ce(tokens), num_clips)
                if scorer is not None:
                    scored += scorer(range(first, first + num_clips), self.clips_of(batch))
                if index % self.args.log_gif_interval == 0 and self.run.is_main_process:
                    sampled_validation.log_gif(self.run, step, world_model, self.clips_of(batch, 1), index, first)
        metrics = self.run.mean_over_processes(averager.take())
        metrics["perplexity"] = torch.tensor(metrics["ce"]).exp().item()
        metrics |= {} if scorer is None else sampled_validation.mean_scores(scored)
        self.run.log(step, "validation", metrics)
        if self.run.is_main_process:
            picture = sampled_validation.render_futures(world_model, self.clips_of(batch, CLIPS_SHOWN))
            self.run.log_image(step, "validation", picture)

    @torch.no_grad()
    def clips_of(self, batch: ClipBatch | TokenBatch, num_clips: int | None = None) -> ClipBatch:
        """Return the first clips of a batch, decoded if it holds tokens."""
        if isinstance(batch, TokenBatch):
            frames = self.tokenizer.detokenize(batch.tokens[:num_clips], self.tokenizer.context_length).clamp(0, 1)
        else:
            frames = batch.frames[:num_clips]
        return ClipBatch(frames, None if batch.actions is None else batch.actions[:num_clips])

    def world_model(self) -> WorldModel:
        """Return the model with its present weights, which takes actions as batches hold them."""
        return WorldModel(self.tokenizer, self.usable_transformer(), self.metadata.for_encoded_actions())

    # ---- files

    def save_checkpoint(self) -> None:
        """Save; a failure is only logged unless the run is stopped here. At its end the final weights still come."""
        is_stopped = self.progress.step < self.args.max_train_steps and self.run.stop_signal.number != 0
        self.checkpoints.save_or_report(self.progress.step, must_succeed=is_stopped)

    def write_weights(self, folder: Path) -> None:
        """Write config.json, model.safetensors and the metadata. All processes call it: weights may be sharded."""
        transformer, tensors = self.transformer, None
        if is_sharded(transformer):
            tensors = whole_state_dict(transformer, only_main=True)
        elif self.adapters is not None:
            transformer = self.adapters.merged()
        if self.accelerator.is_main_process:
            save_transformer(transformer, folder, tensors=tensors)
            self.metadata.write(folder)
            if self.adapters is not None:
                self.adapters.save(folder / ADAPTER_FOLDER)


@contextmanager
def latest_logits(llm: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that holds the logits (B, n, vocabulary) of the language model's latest forward pass."""
    latest: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, outputs: Any) -> None:
        latest[:] = [outputs.logits]

    hook = llm.register_forward_hook(keep)
    try:
        yield latest
    finally:
        hook.remove()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of labelled tokens that are the likeliest; ``labels[:, i]`` is predicted at position i - 1."""
    predicted, labels = logits[:, :-1].argmax(dim=-1), labels[:, 1:]
    labelled = labels != IGNORED_LABEL
    return (predicted == labels)[labelled].float().mean()
