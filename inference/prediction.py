"""Sample futures of one segment of an episode, score them, and write pictures and numbers."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inference.utils import NPZParser, Segment
from ivideogpt.data.catalog import dataset_info, is_known, stepsize_as_trained
from ivideogpt.data.clips.batches import ClipBatch
from ivideogpt.devices import choose_device
from ivideogpt.errors import UserError
from ivideogpt.evaluation.model_settings import with_settings
from ivideogpt.evaluation.video_prediction import references, sample_futures, score_frames
from ivideogpt.evaluation.visualize import contact_sheet, sample_rows
from ivideogpt.files import write_json
from ivideogpt.metadata import ModelMetadata
from ivideogpt.metrics.frame_metrics import best_of_samples
from ivideogpt.metrics.table import METRICS
from ivideogpt.precision import precision
from ivideogpt.pretrained import language_model
from ivideogpt.session import UnsoundModel, are_finite
from ivideogpt.video_io import side_by_side, to_pixels, write_gif, write_png
from ivideogpt.world_model import WorldModel

if TYPE_CHECKING:
    from inference.predict import PredictArgs

logger = logging.getLogger(__name__)

Scores = dict[str, dict[str, Tensor]]  # candidate -> metric -> (N, F)


@dataclass(frozen=True)
class Prediction:
    """Futures of one clip, all on the CPU in [0, 1]. F future frames, N samples.

    Attributes:
        context: (t, 3, H, W) reconstructed.
        futures: (N, F, 3, H, W).
        references: baselines and upper bounds by name, (1, F, 3, H, W) each.
        rewards: (N, F) if the model predicts them.
        seconds: duration of the rollout, encoding of the context included.
    """

    context: Tensor
    futures: Tensor
    references: dict[str, Tensor]
    rewards: Tensor | None
    seconds: float


def run(args: PredictArgs) -> None:
    model = load_model(args)
    segment = read_segment(args, model.metadata, model.action_space)
    prediction = predict(model, segment, number_of_samples(args, model), args.seed)
    metrics = report(args, segment, model, prediction)
    write(args, segment, prediction, metrics)
    print_table(args, metrics)


def load_model(args: PredictArgs) -> WorldModel:
    dtype = precision(args.dtype)
    device = choose_device(args.device)
    path = args.pretrained_model_name_or_path
    model = WorldModel.from_pretrained(path, device, dtype, args.backend, args.action_space)
    if args.action_space is None and model.metadata.action_spaces is not None:
        named = [space.name for space in model.metadata.action_spaces.spaces if args.dataset_name in space.datasets]
        model.action_space = named[0] if named else None
    return adapt(model, args)


def adapt(model: WorldModel, args: PredictArgs) -> WorldModel:
    """Return the model with the settings that flags override in its checkpoint."""
    if args.action_conditioned and model.metadata.action_dim is None:
        raise UserError("--action_conditioned was given, but the checkpoint is action-free")
    for flag in ("resolution", "action_dim"):
        asked, fixed = getattr(args, flag), getattr(model.metadata.for_space(model.action_space), flag)
        if asked is not None and asked != fixed:
            raise UserError(
                f"--{flag} {asked} was given, but {args.pretrained_model_name_or_path} has {fixed}: leave it out"
            )
    context_length = args.context_length or model.metadata.context_length
    return with_settings(
        model,
        context_length=context_length,
        segment_length=context_length + args.horizon if args.horizon else args.segment_length,
        goal_conditioned=args.goal_conditioned,
        temperature=args.temperature,
        top_k=args.top_k,
        rule=args.sampling_rule,
    )


def read_segment(args: PredictArgs, metadata: ModelMetadata, action_space: str | None = None) -> Segment:
    """Read the context and the true future of one segment. A goal-conditioned model gets the last frame first."""
    assert args.input_path is not None
    spaces = () if metadata.action_spaces is None else metadata.action_spaces.spaces
    trained_on = {dataset for space in spaces for dataset in space.datasets}
    metadata = metadata.for_space(action_space)
    name = args.dataset_name
    info = dataset_info(name or "")
    step = info.step(stepsize_as_trained([] if name is None else [name], metadata.dataset_step))
    if name is not None and name not in trained_on and not is_known(name):
        logger.warning(
            "--dataset_name %s is in no table: frames are %d apart, from array %r", name, step, info.image_key
        )
    np.random.seed(args.seed)  # the parser samples the segment's start first
    segment = NPZParser(metadata.segment_length, metadata.resolution).parse_segment(
        args.input_path, name, metadata.action_dim is not None, action_dim=metadata.action_dim, step=step
    )
    if metadata.goal_conditioned:
        *others, goal = segment.indices
        return replace(segment, frames=segment.frames.roll(1, dims=0), indices=(goal, *others))
    return segment


def number_of_samples(args: PredictArgs, model: WorldModel) -> int:
    """Return ``--repeat_times``, or 1 with a message where sampling is deterministic."""
    if args.repeat_times == 1 or not model.metadata.generation.is_deterministic:
        return args.repeat_times
    print("one future, as the checkpoint samples deterministically; --top_k 100 samples several", flush=True)
    return 1


@torch.inference_mode()
def predict(model: WorldModel, segment: Segment, num_samples: int, seed: int) -> Prediction:
    clip = ClipBatch(segment.frames[None], None if segment.actions is None else segment.actions[None])
    started = time.perf_counter()
    rollout = sample_futures(model, clip, seed, num_samples)
    if not are_finite(rollout.frames, rollout.rewards):
        raise UnsoundModel
    futures = rollout.frames[0].cpu()  # waits for the device
    seconds = time.perf_counter() - started
    return Prediction(
        context=rollout.context[0].cpu(),
        futures=futures,
        references={name: frames.cpu() for name, frames in references(model, clip.frames).items()},
        rewards=None if rollout.rewards is None else rollout.rewards[0].cpu(),
        seconds=seconds,
    )


def score(segment: Segment, prediction: Prediction) -> Scores:
    """Score every predicted frame, (N, F), of the prediction and of its references."""
    truth = segment.frames[len(prediction.context) :]
    scored = {"prediction": prediction.futures, **prediction.references}
    return {name: score_frames(truth, frames) for name, frames in scored.items()}


def summarise(scores: Scores) -> dict[str, dict[str, float]]:
    """Average over frames and samples; each metric chooses its own best sample."""
    summary = {name: {key: float(values.mean()) for key, values in metrics.items()} for name, metrics in scores.items()}
    best = {key: float(best_of_samples(key, values.mean(dim=1)[None])) for key, values in scores["prediction"].items()}
    return {"prediction": summary.pop("prediction"), "prediction_best_sample": best, **summary}


def report(args: PredictArgs, segment: Segment, model: WorldModel, prediction: Prediction) -> dict[str, Any]:
    """Return the content of ``metrics.json``. Scores are over predicted frames only."""
    scores = score(segment, prediction)
    networks = model.tokenizer, language_model(model.transformer)
    tokenizer, transformer = (str(network.dtype).removeprefix("torch.") for network in networks)
    per_frame = {
        name: {key: values.mean(dim=0).tolist() for key, values in metrics.items()} for name, metrics in scores.items()
    }
    return {
        "model": args.pretrained_model_name_or_path,
        "input_path": args.input_path,
        "dataset_name": args.dataset_name,
        "frames": segment.indices,
        "metadata": model.metadata.as_json(),
        "action_space": model.action_space,
        "num_samples": len(prediction.futures),
        "seed": args.seed,
        "device": str(model.device),
        "dtype": tokenizer if tokenizer == transformer else f"tokenizer {tokenizer}, transformer {transformer}",
        "scores": summarise(scores),
        "scores_per_frame": per_frame,
        "scores_per_sample": {key: values.mean(dim=1).tolist() for key, values in scores["prediction"].items()},
        "rewards": None if prediction.rewards is None else prediction.rewards.tolist(),
        "seconds": prediction.seconds,
        "frames_per_second": prediction.futures[:, :, 0, 0, 0].numel() / prediction.seconds,
    }


def write(args: PredictArgs, segment: Segment, prediction: Prediction, metrics: dict[str, Any]) -> None:
    folder = Path(args.output_path)
    folder.mkdir(parents=True, exist_ok=True)
    truth = to_pixels(segment.frames)
    samples = [to_pixels(torch.cat([prediction.context, future])) for future in prediction.futures]
    for j, sample in enumerate(samples):
        write_gif(folder / f"pred-samples-{j}.gif", side_by_side([truth, sample]), fps=4)
    for older in folder.glob("pred-samples-*.gif"):
        if older.stem.removeprefix("pred-samples-") not in map(str, range(len(samples))):
            older.unlink()  # a run before had more samples
    title = f"{Path(args.pretrained_model_name_or_path).name}: {Path(metrics['input_path']).stem}"
    groups = [sample_rows(truth, sample, f"sample {j}") for j, sample in enumerate(samples)]
    write_png(folder / "contact-sheet.png", contact_sheet(groups, len(prediction.context), title))
    write_json(folder / "metrics.json", metrics)


def print_table(args: PredictArgs, metrics: dict[str, Any]) -> None:
    shown = [METRICS[name] for name in metrics["scores"]["prediction"]]
    print(f"\n{'predicted frames only':<24}" + "".join(f"{metric.label:>8}" for metric in shown))
    for name, scores in metrics["scores"].items():
        print(
            f"{name.replace('_', ' '):<24}"
            + "".join(f"{scores[metric.name]:>8.{metric.decimals}f}" for metric in shown)
        )
    print(f"\n{metrics['frames_per_second']:.1f} frames per second on {metrics['device']} ({metrics['dtype']})")
    print(f"pred-samples-*.gif, contact-sheet.png and metrics.json are in {args.output_path}")
