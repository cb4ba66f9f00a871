"""Validation by sampled futures, which are logged as GIFs and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ivideogpt.data.clips.batches import ClipBatch
from ivideogpt.evaluation.processes import Processes
from ivideogpt.evaluation.rows import PREDICTION, ClipRow, RowSummary
from ivideogpt.evaluation.video_prediction import COPY, RECONSTRUCTION, PredictionScorer, sample_futures
from ivideogpt.metrics.frame_metrics import FrameScorer, find_i3d, find_lpips
from ivideogpt.metrics.fvd import I3D
from ivideogpt.metrics.table import METRICS
from ivideogpt.training.common.args import GptArgs
from ivideogpt.training.common.clip_batches import VALIDATION_SEED
from ivideogpt.training.common.run import Run
from ivideogpt.video_io import side_by_side, to_pixels, write_gif
from ivideogpt.world_model import WorldModel

# Name in the metrics -> column and candidate.
LOGGED = {
    "": ("paper", PREDICTION),
    "future_": ("future", PREDICTION),
    "copy_": ("future", COPY),
    "reconstruction_": ("future", RECONSTRUCTION),
}

# What scores depend on, beside the models.
EVALUATION_FLAGS = (
    "dataset_path", "oxe_data_mixes_type", "use_eval_dataset", "sthsth_root_path", "video_stepsize", "resolution",
    "context_length", "segment_length", "action_conditioned", "goal_conditioned", "max_eval_iters",
    "per_device_eval_batch_size", "per_device_train_batch_size", "eval_generate_times", "lpips_path", "i3d_path",
)  # fmt: skip


@dataclass(frozen=True)
class ScoringNetworks:
    """Networks that score frames and videos, for every metric that was asked for and whose weights are there."""

    frames: FrameScorer
    i3d: I3D | None

    @classmethod
    def find(cls, args: GptArgs, device: torch.device) -> ScoringNetworks:
        """Load the networks whose weights are there; the log names the missing ones."""
        frames = FrameScorer(find_lpips(args.lpips_path, device), args.max_decode_batchsize)
        return cls(frames, find_i3d(args.i3d_path, device) if args.use_fvd else None)

    def scorer(self, model: WorldModel, args: GptArgs) -> PredictionScorer:
        """Build a scorer; FVD only for predictions of whole clips."""
        return PredictionScorer(
            model,
            self.frames,
            self.i3d,
            fvd_of={"paper": (PREDICTION,)},
            num_samples=args.eval_generate_times,
            seed=VALIDATION_SEED,
            max_rows=args.max_generate_batchsize,
            max_videos=args.max_decode_batchsize,
        )


@dataclass
class SampledValidation:
    """Scores of one validation, whose clips come in batches of ``batch_size``, in turns over the processes."""

    scorer: PredictionScorer
    batch_size: int
    accelerator: Accelerator
    batches: int = 0
    rows: list[ClipRow] = field(default_factory=list)

    def add(self, clips: ClipBatch) -> None:
        """Score a batch, all of whose frames are known."""
        accelerator = self.accelerator
        first = (self.batches * accelerator.num_processes + accelerator.process_index) * self.batch_size
        self.rows += self.scorer(range(first, first + len(clips.frames)), clips)
        self.batches += 1

    def metrics(self) -> dict[str, float]:
        """Return means over the clips of all processes, which all call it; with I3D also FVD."""
        rows = [row for part in Processes().gather(self.rows) for row in part]
        summary = RowSummary(sorted(rows, key=lambda row: row.number))
        metrics = {
            f"{prefix}{metric}": summary.means.mean((column, name, metric))
            for prefix, (column, name) in LOGGED.items()
            for metric, row in METRICS.items()
            if row.scores_whole_frames and (column, name, metric) in summary.means
        }
        distances = summary.fvd()
        return metrics | ({"fvd": distances["paper"][PREDICTION]} if distances else {})


def log_gif(run: Run, step: int, model: WorldModel, clip: ClipBatch, batch: int, number: int) -> None:
    """Log a clip beside one sampled future of it, the one that is scored for clip ``number``."""
    rollout = sample_futures(model, clip, VALIDATION_SEED, clip_numbers=[number])
    sample = torch.cat([rollout.context[0], rollout.frames[0, 0]])
    folder = run.directory / "images"
    folder.mkdir(exist_ok=True)
    path = folder / f"validation-{step:07d}-clip-{batch:03d}.gif"
    write_gif(path, side_by_side([to_pixels(clip.frames[0]), to_pixels(sample)]))
    run.log_video(step, f"validation-clip-{batch:03d}", path)


def evaluated_settings(args: GptArgs) -> dict[str, Any]:
    """Return the settings of ``train_gpt.py --eval_only`` that its report lists."""
    asked = {name: getattr(args, name) for name in EVALUATION_FLAGS}
    tokenizer = args.pretrained_model_name_or_path
    return {"model": str(args.pretrained_transformer_path), "tokenizer": tokenizer, **asked, "seed": VALIDATION_SEED}


def reported_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """Return a report's means under the names that validations use."""
    metrics = {
        f"{prefix}{metric}": interval["mean"]
        for prefix, (column, name) in LOGGED.items()
        for metric, interval in report["scores"].get(column, {}).get(name, {}).items()
        if METRICS[metric].scores_whole_frames
    }
    return metrics | ({"fvd": report["fvd"]["paper"][PREDICTION]} if report["fvd"] else {})


def report_folder(run: Run) -> Path:
    return run.directory / "evaluation"
