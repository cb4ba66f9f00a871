"""What a resumed run must have in common with the run that it goes on with. Knows flags and run.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivideogpt.errors import UserError
from ivideogpt.files import read_json

RECORD = "run.json"

# How long to train, what to write and where, and how to fit into the machine. All other flags decide what is trained.
MAY_CHANGE = frozenset(
    {
        "max_train_steps",
        "num_train_epochs",
        "gradient_checkpointing",
        "compile",
        "dataloader_num_workers",
        "on_bad_episode",  # a run that stopped at a bad episode may go on without it
        "cache_mb",
        "per_device_eval_batch_size",
        "eval_token_store",
        "use_eval_dataset",
        "use_frame_metrics",
        "use_fvd",
        "i3d_path",
        "eval_generate_times",
        "max_generate_batchsize",
        "max_decode_batchsize",
        "log_gif_interval",
        "validation_steps",
        "max_eval_iters",
        "skip_first_val",
        "log_steps",
        "log_grad_norm_steps",
        "log_image_steps",
        "checkpointing_steps",
        "keep_last_n",
        "latest_checkpoint_only",
        "resume_from_checkpoint",
        "dry_run",
        "output_dir",
        "exp_name",
        "with_tracking",
        "report_to",
        "tracker_project_name",
        "logging_dir",
        "local_rank",
        "cache_dir",
    }
)


def recorded_args(run_directory: Path) -> dict[str, Any]:
    """The flags that a run began with."""
    file = run_directory / RECORD
    try:
        recorded = read_json(file, "start a new run from its weights").get("args")
    except UserError as error:
        raise UserError(f"{file}: no readable record of the run to resume ({error})") from error
    if not isinstance(recorded, dict) or "seed" not in recorded:
        raise UserError(f"{file}: no readable record of the run to resume (no args with a seed in it)")
    return recorded


def check_unchanged(asked: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Raises UserError if a flag that decides what is trained differs from the record."""
    different = [
        f"--{name} {value} (was {recorded[name]})"
        for name, value in asked.items()
        if name not in MAY_CHANGE and name in recorded and recorded[name] != value
    ]
    if different:
        raise UserError(
            f"a resumed run keeps its settings, but given {', '.join(different)}: start a new run for that, "
            "without --resume_from_checkpoint or under another --exp_name"
        )
