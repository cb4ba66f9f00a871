"""Rules for the flags that a resumed training run must keep. Knows flags and run.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ivideogpt.errors import UserError
from ivideogpt.files import read_json
from ivideogpt.runs.resume import RECORD, Changes, ResumeRules, refuse

RULES = ResumeRules(
    may_change=frozenset(
        {
            "max_train_steps", "num_train_epochs", "gradient_checkpointing", "compile", "dataloader_num_workers",
            "on_bad_episode",  # a run that stopped at a bad episode may go on without it
            "cache_mb", "per_device_eval_batch_size", "eval_token_store", "use_eval_dataset", "use_frame_metrics",
            "use_fvd", "i3d_path", "lpips_path", "eval_generate_times", "max_generate_batchsize",
            "max_decode_batchsize", "log_gif_interval", "validation_steps", "max_eval_iters", "skip_first_val",
            "log_steps", "log_grad_norm_steps", "log_image_steps", "checkpointing_steps", "keep_last_n",
            "latest_checkpoint_only", "resume_from_checkpoint", "resume_with_changes", "dry_run", "output_dir",
            "exp_name", "with_tracking", "report_to", "tracker_project_name", "logging_dir", "local_rank", "cache_dir",
        }
    ),
    data=("dataset_path", "sthsth_root_path", "token_store"),
    weights=(
        "pretrained_model_name_or_path", "pretrained_transformer_path", "config_name", "model_config_name_or_path",
        "discriminator_config_name_or_path",
    ),
    allow="--resume_with_changes",
)  # fmt: skip


def recorded_run(run_directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the flags that a run began with, and digests of what they name."""
    file = run_directory / RECORD
    try:
        record = read_json(file, "start a new run from its weights")
    except UserError as error:
        raise UserError(f"{file}: no readable record of the run to resume ({error})") from error
    recorded = record.get("args")
    if not isinstance(recorded, dict) or "seed" not in recorded:
        raise UserError(f"{file}: no readable record of the run to resume (no args with a seed in it)")
    return recorded, record.get("contents", {})


def allowed_changes(asked: Mapping[str, Any], recorded: Mapping[str, Any], digests: Mapping[str, str]) -> Changes:
    """Return the flags that a resumed run changes on purpose.

    Raises:
        UserError: a flag that decides what is trained differs from the record, without ``--resume_with_changes``.
    """
    changes = RULES.changes(asked, recorded, digests)
    if not asked["resume_with_changes"]:
        refuse(
            changes, RULES.allow, lambda name, before, now: f"--{name} {now} (was {before})",
            "start a new run for that, without --resume_from_checkpoint or under another --exp_name",
        )  # fmt: skip
    return changes


@contextmanager
def keeping_hyperparameters(optimizer: Optimizer, scheduler: LRScheduler) -> Iterator[None]:
    """Let a checkpoint bring moments and progress, and keep learning rate, schedule, decay and betas as asked now."""
    asked = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    rates = list(scheduler.base_lrs)
    yield
    assert isinstance(scheduler, LambdaLR)
    scheduler.base_lrs = rates
    for group, settings, rate, factor in zip(optimizer.param_groups, asked, rates, scheduler.lr_lambdas, strict=True):
        group.update(settings | {"lr": rate * factor(scheduler.last_epoch)})
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
