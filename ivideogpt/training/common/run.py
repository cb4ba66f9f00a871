"""One training run and its record: processes, folder, seed, trackers, metrics. Knows nothing of models or data.

A run's folder is named once, by the main process. Nothing is written before the run is entered (``with run:``), so a
command that fails while it builds its parts leaves no trace.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, set_seed
from PIL import Image
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ivideogpt.data.clips.loaders import BatchLost
from ivideogpt.data.dataset_mixes import resolve_mix
from ivideogpt.data.formats.lerobot_paths import find_on_hub
from ivideogpt.data.formats.registry import find_format
from ivideogpt.devices import check_launcher, has_bfloat16_units, several_without_gpu, versions
from ivideogpt.errors import UserError
from ivideogpt.files import atomic_file, going_on_without_room, read_json, write_json
from ivideogpt.runs.checkpoints import set_aside_later, step_of
from ivideogpt.runs.locks import check_not_locked, locked
from ivideogpt.runs.metrics_file import METRICS, append_metrics, cut_back
from ivideogpt.runs.resume import RECORD, Changes, ResumeRules, refuse
from ivideogpt.runs.signals import StopSignal
from ivideogpt.runs.trackers import TensorBoard, Tracker, Trackio, WeightsAndBiases, send_to_each
from ivideogpt.training.common.args import MAX_SEED, GptArgs, TokenizerArgs
from ivideogpt.training.common.checkpoints import Checkpoints, find_checkpoint, run_directory_of

logger = logging.getLogger(__name__)

WAIT_OR = "start a new run, without --resume_from_checkpoint"
RECORDED_PACKAGES = ("ivideogpt", "torch", "accelerate", "transformers", "numpy")


def path_read(name: str, settings: Mapping[str, Any]) -> Any:
    """Return the path of a setting; in place of a folder of data sets those of the mix, as others may come and go."""
    path = settings.get(name)
    if name != "dataset_path" or path is None or find_format(path) is not None:
        return path
    with suppress(UserError):  # the loader says it
        mix = resolve_mix(settings["oxe_data_mixes_type"], path)
        return ",".join(filter(os.path.isdir, (os.path.join(path, dataset) for dataset, _ in mix)))
    return path


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
        "discriminator_config_name_or_path", "action_spaces",
    ),
    allow="--resume_with_changes",
    find_on_hub=find_on_hub,
    find_path=path_read,
)  # fmt: skip


@dataclass
class Run:
    """The ``accelerator``, ``directory``, ``seed`` and metrics record that every part of a training script shares.

    ``checkpoint`` is the one to resume from. ``facts`` go into run.json. ``exit_code`` is the command's.
    """

    args: TokenizerArgs | GptArgs
    accelerator: Accelerator
    directory: Path
    seed: int
    checkpoint: Path | None = None
    changes: Changes = field(default_factory=dict)  # since the run that is resumed, on purpose
    facts: dict[str, Any] = field(default_factory=dict)
    trackers: list[Tracker] = field(default_factory=list)  # on the main process only
    stop_signal: StopSignal = field(default_factory=StopSignal)
    exit_code: int = 0
    at_end: list[Callable[[], None]] = field(default_factory=list)  # called by all processes unless the run failed

    def __enter__(self) -> Run:
        with ExitStack() as stack:
            if self.is_main_process:
                Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
                while self.checkpoint is None:
                    try:
                        self.directory.mkdir()
                        break
                    except FileExistsError:  # a run that began in the same second has taken the name
                        self.directory = _new_folder_name(self.args)
                stack.enter_context(locked(self.directory, WAIT_OR))
                if self.checkpoint is None:
                    self._write_record()
            self.directory = broadcast_object_list([self.directory])[0]
            stack.callback(self.accelerator.end_training)
            for name in self.args.trackers if self.is_main_process else ():
                self.trackers.append(tracker := self._start_tracker(name))
                stack.callback(going_on_without_room()(tracker.close))
            stack.enter_context(self.stop_signal.listening())
            stack.enter_context(logging_redirect_tqdm())
            self._exit = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: Any) -> None:
        if kind is None:  # a process that failed cannot wait for the others: they may be waiting for it elsewhere
            for report in self.at_end:
                report()
            self.accelerator.wait_for_everyone()
        self._exit.__exit__(kind, *exception)

    @property
    def is_main_process(self) -> bool:
        return self.accelerator.is_main_process

    # ---- the record

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Log metrics of ``split`` (train, validation) to metrics.jsonl, the trackers and the log."""
        if not self.is_main_process:
            return
        with going_on_without_room():
            append_metrics(self.directory / METRICS, {"step": step, "split": split}, metrics)
        tracked = {f"{split}/{name}": value for name, value in metrics.items()}
        send_to_each(self.trackers, lambda tracker: tracker.log(tracked, step))
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if not name.startswith("grad_norm/"))
        logger.info("step %d %s  %s", step, split, text)

    def log_image(self, step: int, name: str, image: Image.Image) -> None:
        """Write an image to ``images/`` in the run folder and to the trackers."""
        if not self.is_main_process:
            return
        with going_on_without_room():
            (self.directory / "images").mkdir(exist_ok=True)
            with atomic_file(self.directory / "images" / f"{name}-{step:07d}.png") as file:
                image.save(file, format="PNG")
        send_to_each(self.trackers, lambda tracker: tracker.log_image(name, image, step))

    def log_video(self, step: int, name: str, path: Path) -> None:
        """Send a GIF of the run folder to the trackers."""
        send_to_each(self.trackers, lambda tracker: tracker.log_gif(name, path, step))

    def mean_over_processes(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the mean of each metric over all processes, which all call this."""
        if not metrics:
            return {}
        values = torch.tensor(list(metrics.values()), device=self.accelerator.device)
        return dict(zip(metrics, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def progress_bar(self, finished_steps: int, total_steps: int, clips_per_step: float) -> tqdm[Any]:
        """Make a progress bar in clips for a terminal; elsewhere the log lines suffice."""
        return tqdm(
            initial=finished_steps,
            total=total_steps,
            unit="clip",
            unit_scale=clips_per_step,
            smoothing=0.05,
            dynamic_ncols=True,
            disable=None if self.is_main_process else True,
        )

    def should_stop(self) -> bool:
        """Return whether any process was asked to stop (SIGTERM, SIGINT)."""
        if self.accelerator.num_processes > 1:
            own = torch.tensor([self.stop_signal.number], device=self.accelerator.device)
            self.stop_signal.number = int(self.accelerator.gather(own).max())
        return self.stop_signal.number != 0

    def stopped_after(self, step: int) -> None:
        """Note that the run ends early, in the exit code and the log."""
        self.exit_code = 128 + self.stop_signal.number
        logger.info("stopped after step %d: go on with --resume_from_checkpoint latest", step)

    @contextmanager
    def saving_at_lost_batch(self, save: Callable[[], None]) -> Iterator[None]:
        """Call ``save`` before the run ends because a batch cannot be had. It would come before a step changes weights.

        Batches that an unfinished step has accumulated are not used again. Of several processes the others wait for
        this one's gradients and cannot take part in saving: their last checkpoint stays.
        """
        try:
            yield
        except BatchLost:
            if self.accelerator.num_processes == 1:
                save()
            raise

    def resume(self, checkpoints: Checkpoints, optimizers: Sequence[tuple[Optimizer, LRScheduler]]) -> None:
        """Load the checkpoint, then put the folder back to it; settings of optimizers that were changed stay as asked.

        Raises:
            UserError: the checkpoint does not fit this run. The folder is as it was.
        """
        assert self.checkpoint is not None
        with ExitStack() as stack:
            for pair in optimizers if self.changes else ():
                stack.enter_context(keeping_hyperparameters(*pair))
            checkpoints.load(self.checkpoint)
        self.accelerator.wait_for_everyone()  # all have loaded theirs
        if self.is_main_process:
            self._go_back(self.checkpoint)
        logger.info("resumed from %s", self.checkpoint)

    # ---- start and end

    def _go_back(self, checkpoint: Path) -> None:
        cut_back(self.directory / METRICS, step_of(checkpoint))
        set_aside_later(checkpoint)
        if self.changes:
            given = (f"--{name} {now} (was {before})" for name, (before, now) in self.changes.items())
            logger.warning("going on with changes: %s", ", ".join(given))
            asked = dataclasses.asdict(self.args)
            RULES.note(self.directory / RECORD, self.changes, step_of(checkpoint), asked, args="args")
        self._write_record()

    def _write_record(self) -> None:
        settings = dataclasses.asdict(self.args) | {"seed": self.seed}
        record = {
            "args": settings,
            "command": sys.argv,
            "git_commit": _git_commit(),
            "versions": versions(RECORDED_PACKAGES),
            "num_processes": self.accelerator.num_processes,
            "device": str(self.accelerator.device),
            "resumed_from": None if self.checkpoint is None else str(self.checkpoint),
            **self.facts,
            **({"contents": RULES.digests(settings)} if self.checkpoint is None else {}),
        }
        # config.json is the trained model's
        name = RECORD if self.checkpoint is None else f"run-from-step-{step_of(self.checkpoint)}.json"
        write_json(self.directory / name, record)
        logger.info("run folder %s", self.directory)

    def _start_tracker(self, name: str) -> Tracker:
        flags = dataclasses.asdict(self.args) | {"seed": self.seed}
        config = {name: value if isinstance(value, int | float | str) else str(value) for name, value in flags.items()}
        project = self.args.tracker_project_name
        if name == "tensorboard":
            last_step = -1 if self.checkpoint is None else step_of(self.checkpoint)
            return TensorBoard(self.directory / self.args.logging_dir / project, last_step, config)
        if name == "wandb":
            return WeightsAndBiases("--report_to wandb", project=project, name=self.directory.name, config=config)
        return Trackio(project, config)


def build_run(args: TokenizerArgs | GptArgs, checkpoint_prefix: str) -> Run:
    """Start the processes and name the run. Writes nothing yet."""
    check_launcher()
    own = GradientAccumulationPlugin(num_steps=1)  # the trainers' flag decides; accelerate would divide once more
    cpu = several_without_gpu()
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=cpu, gradient_accumulation_plugin=own)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("--mixed_precision fp16 needs an accelerator, and this run is on the CPU: choose bf16 or no")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UserError("DeepSpeed is not supported: configs/accelerate/fsdp2.yaml and zero2.yaml shard without it")
    if accelerator.distributed_type == DistributedType.FSDP and isinstance(args, TokenizerArgs):
        raise UserError("FSDP is for transformers: train the tokenizer with configs/accelerate/multi_gpu.yaml")
    if accelerator.distributed_type == DistributedType.FSDP and getattr(args, "lora", False):
        raise UserError("--lora does not go with FSDP: adapters fit one GPU, use configs/accelerate/multi_gpu.yaml")
    args = dataclasses.replace(args, mixed_precision=accelerator.mixed_precision)
    level = logging.INFO if accelerator.is_main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if accelerator.mixed_precision == "bf16" and accelerator.device.type == "cpu" and not has_bfloat16_units():
        logger.warning("this CPU has no bfloat16 units: --mixed_precision no is many times as fast as bf16")
    place = [_place_of(args, checkpoint_prefix) if accelerator.is_main_process else None]
    checkpoint, directory, seed, changes = broadcast_object_list(place)[0]
    set_seed(seed, device_specific=True)
    return Run(args, accelerator, directory, seed, checkpoint, changes)


def _place_of(args: TokenizerArgs | GptArgs, checkpoint_prefix: str) -> tuple[Path | None, Path, int, Changes]:
    """Return the checkpoint to resume from, the run folder, the seed, and what the resumed run changes."""
    checkpoint = find_checkpoint(args.resume_from_checkpoint, Path(args.output_dir), args.exp_name, checkpoint_prefix)
    if checkpoint is None:
        seed = secrets.randbelow(MAX_SEED) if args.seed is None else args.seed
        return None, _new_folder_name(args), seed, {}
    directory = run_directory_of(checkpoint, checkpoint_prefix)
    check_not_locked(directory, WAIT_OR)
    recorded, digests = recorded_run(directory)
    seed = recorded["seed"] if args.seed is None else args.seed
    changes = RULES.changes(dataclasses.asdict(args) | {"seed": seed}, recorded, digests)
    if not args.resume_with_changes:
        refuse(
            changes, RULES.allow, lambda name, before, now: f"--{name} {now} (was {before})",
            "start a new run for that, without --resume_from_checkpoint or under another --exp_name",
        )  # fmt: skip
    return checkpoint, directory, seed, changes


def _new_folder_name(args: TokenizerArgs | GptArgs) -> Path:
    while (folder := Path(args.output_dir) / f"{datetime.now():%Y-%m-%d-%H:%M:%S}-{args.exp_name}").exists():
        time.sleep(0.1)
    return folder


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or no repository
        return None


def recorded_run(run_directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the flags that a run began with, and digests of what they name."""
    advice = "start a new run from its weights"
    record = read_json(run_directory / RECORD, advice)
    recorded = record.get("args")
    if not isinstance(recorded, dict) or "seed" not in recorded:
        raise UserError(f"{run_directory / RECORD} has no args with a seed in it; {advice}")
    return recorded, record.get("contents", {})


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
