"""Validation by sampled futures, which are logged as GIFs and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from PIL import Image

from ivideogpt.data.clips.batches import ClipBatch
from ivideogpt.data.clips.evaluation_clips import EvaluationClips
from ivideogpt.evaluation.prediction_report import evaluate_predictions
from ivideogpt.evaluation.report import candidates_as_json
from ivideogpt.evaluation.rows import PREDICTION, ClipRow, RowSummary
from ivideogpt.evaluation.scoring import Processes
from ivideogpt.evaluation.video_prediction import COPY, RECONSTRUCTION, PredictionScorer, predict_future, sample_futures
from ivideogpt.evaluation.visualize import contact_sheet, sample_rows
from ivideogpt.files import going_on_without_room
from ivideogpt.metrics.frame_metrics import FrameScorer, find_i3d, find_lpips
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


def find_scorer(args: GptArgs, device: torch.device) -> Callable[[WorldModel], PredictionScorer]:
    """Return what makes a scorer of a model; FVD only for predictions of whole clips.

    It scores by every metric that was asked for and whose weights are there; the log names the missing ones.
    """
    return partial(
        PredictionScorer,
        scorer=FrameScorer(find_lpips(args.lpips_path, device), args.max_decode_batchsize),
        i3d=find_i3d(args.i3d_path, device) if args.use_fvd else None,
        fvd_of={"paper": (PREDICTION,)},
        num_samples=args.eval_generate_times,
        seed=VALIDATION_SEED,
        max_rows=args.max_generate_batchsize,
        max_videos=args.max_decode_batchsize,
    )


def mean_scores(rows: list[ClipRow]) -> dict[str, float]:
    """Return means over the scored clips of all processes, which all call it; with I3D also FVD."""
    gathered = [row for part in Processes().gather(rows) for row in part]
    summary = RowSummary(sorted(gathered, key=lambda row: row.number))
    scores = {column: candidates_as_json(candidates) for column, candidates in summary.columns().items()}
    return _logged(scores, summary.fvd())


def log_gif(run: Run, step: int, model: WorldModel, clip: ClipBatch, batch: int, number: int) -> None:
    """Log a clip beside one sampled future of it, the one that is scored for clip ``number``."""
    rollout = sample_futures(model, clip, VALIDATION_SEED, clip_numbers=[number])
    sample = torch.cat([rollout.context[0], rollout.frames[0, 0]])
    path = run.directory / "images" / f"validation-{step:07d}-clip-{batch:03d}.gif"
    with going_on_without_room():
        path.parent.mkdir(exist_ok=True)
        write_gif(path, side_by_side([to_pixels(clip.frames[0]), to_pixels(sample)]))
        run.log_video(step, f"validation-clip-{batch:03d}", path)


def render_futures(model: WorldModel, clips: ClipBatch) -> Image.Image:
    """Render one sampled future of some clips beside the true one."""
    num_context = model.metadata.context_length
    predicted = torch.cat([clips.frames[:, :num_context], predict_future(model, clips, VALIDATION_SEED)], dim=1)
    pairs = zip(to_pixels(clips.frames), to_pixels(predicted), strict=True)
    groups = [sample_rows(truth, prediction, "prediction") for truth, prediction in pairs]
    return Image.fromarray(contact_sheet(groups, num_context))


def report_predictions(run: Run, args: GptArgs, scorer: PredictionScorer, clips: EvaluationClips) -> dict[str, float]:
    """Write the report of ``train_gpt.py --eval_only``; return its means, and nothing on other processes."""
    asked = {name: getattr(args, name) for name in EVALUATION_FLAGS}
    model, tokenizer = str(args.pretrained_transformer_path), args.pretrained_model_name_or_path
    settings = {"model": model, "tokenizer": tokenizer, **asked, "seed": VALIDATION_SEED}
    folder = run.directory / "evaluation"
    report = evaluate_predictions(scorer, clips, folder, settings, batch_size=args.eval_batch_size)
    return {} if report is None else _logged(report["scores"], report["fvd"])


def _logged(scores: Mapping[str, Any], fvd: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return means under the names that validations use: from column -> candidate -> metric -> interval."""
    metrics = {
        f"{prefix}{metric}": scores[column][name][metric]["mean"]
        for prefix, (column, name) in LOGGED.items()
        for metric, row in METRICS.items()
        if row.scores_whole_frames and metric in scores.get(column, {}).get(name, {})
    }
    return metrics | ({"fvd": fvd["paper"][PREDICTION]} if fvd else {})
