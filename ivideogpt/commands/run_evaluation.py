"""Run evaluations: build processes, models, clips and scorers from the flags, and write the report."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

from ivideogpt.commands.evaluate import MOST_CLIPS, ClipFlags, EvaluationArgs, TokenizerEvaluationArgs
from ivideogpt.data.catalog import Split, stepsize_as_trained
from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.evaluation_clips import EvaluationClips, build_benchmark_evaluation, build_evaluation_clips
from ivideogpt.data.clips.segments import SegmentSpec, segment_kind
from ivideogpt.data.dataset_mixes import resolve_mix
from ivideogpt.devices import check_launcher, choose_device
from ivideogpt.errors import UserError
from ivideogpt.evaluation.model_settings import with_settings
from ivideogpt.evaluation.prediction_report import evaluate_predictions
from ivideogpt.evaluation.protocols import PROTOCOLS
from ivideogpt.evaluation.report import MARKDOWN_FILE
from ivideogpt.evaluation.scoring import Processes
from ivideogpt.evaluation.tokenizer_report import ReconstructionScorer, evaluate_reconstructions
from ivideogpt.evaluation.video_prediction import CANDIDATES, FVD_SPANS, PredictionScorer
from ivideogpt.metadata import ModelMetadata
from ivideogpt.metrics.frame_metrics import FrameScorer, find_i3d, find_lpips
from ivideogpt.precision import precision
from ivideogpt.pretrained import load_tokenizer, model_folder
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.world_model import WorldModel, fastest_precisions

logger = logging.getLogger(__name__)


def evaluate_world_model(args: EvaluationArgs) -> None:
    with joined_processes(args) as (device, processes):
        model = load_model(args, device)
        metadata = with_named_datasets(args, model.metadata)
        model.metadata = metadata.for_encoded_actions()  # clips come from all spaces, each by its dataset's
        scorer = build_scorer(args, model, device)
        settings = replace(args, num_samples=scorer.num_samples).reported()
        clips, folder = load_clips(args, metadata), Path(args.output_path)
        report = evaluate_predictions(scorer, clips, folder, settings, args.protocol, args.batch_size, processes)
        if report is not None:
            print((folder / MARKDOWN_FILE).read_text().split("## Frame by frame")[0])
            print(f"report: {folder / MARKDOWN_FILE}")


@contextmanager
def joined_processes(flags: ClipFlags) -> Iterator[tuple[torch.device, Processes]]:
    """Yield the device and the processes. Only the main process logs warnings."""
    check_launcher()
    device = choose_device(flags.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group("gloo")
    processes = Processes()
    logging.basicConfig(level=logging.WARNING if processes.is_main else logging.ERROR, format="%(message)s")
    if precision(flags.dtype) == torch.float32:
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield device, processes
    finally:
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def load_model(args: EvaluationArgs, device: torch.device) -> WorldModel:
    model = WorldModel.from_pretrained(args.pretrained_model_name_or_path, device, precision(args.dtype), args.backend)
    sampling = dict(temperature=args.temperature, top_k=args.top_k, separators=args.separators, rule=args.sampling_rule)
    return with_settings(model, args.context_length, args.segment_length, args.goal_conditioned, **sampling)


def with_named_datasets(args: EvaluationArgs, metadata: ModelMetadata) -> ModelMetadata:
    """Return the metadata with every dataset of the mix in an action space, by its name or ``--action_space``."""
    if metadata.action_spaces is None:
        metadata.find_space(args.action_space)
        return metadata
    names = [name for name, _ in resolve_mix(args.oxe_data_mixes_type, args.dataset_path)]
    return replace(metadata, action_spaces=metadata.action_spaces.with_datasets(names, args.action_space))


def load_clips(args: EvaluationArgs, metadata: ModelMetadata) -> EvaluationClips:
    config = clip_config(args, metadata)
    if not args.use_eval_dataset:
        return clips_of_split(args, config)
    if metadata.goal_conditioned:
        raise UserError("--use_eval_dataset: benchmark clips do not start with a goal frame, which this model needs")
    return build_benchmark_evaluation(config, args.num_clips)


def build_scorer(args: EvaluationArgs, model: WorldModel, device: torch.device) -> PredictionScorer:
    num_samples = args.num_samples
    if num_samples > 1 and model.metadata.generation.is_deterministic:
        logger.warning("one sample of each clip: the checkpoint samples deterministically; --top_k 100 samples several")
        num_samples = 1
    return PredictionScorer(
        model,
        FrameScorer(find_lpips(args.lpips_path, device), args.max_decode_batchsize),
        find_i3d(args.i3d_path, device),
        fvd_of={span: CANDIDATES for span in FVD_SPANS if span in PROTOCOLS[args.protocol]},
        num_samples=num_samples,
        seed=args.seed,
        max_rows=args.max_generate_batchsize,
        max_videos=args.max_decode_batchsize,
    )


def clip_config(flags: ClipFlags, metadata: ModelMetadata) -> DataConfig:
    """Return the configuration of clips in the form that the model was trained on."""
    mix = resolve_mix(flags.oxe_data_mixes_type, flags.dataset_path)
    kind = segment_kind(goal_conditioned=metadata.goal_conditioned)
    return DataConfig(
        dataset_path=flags.dataset_path,
        mix=mix,
        segment=SegmentSpec(kind, metadata.segment_length, metadata.context_length),
        video_stepsize=flags.video_stepsize or stepsize_as_trained([name for name, _ in mix], metadata.dataset_step),
        image_size=metadata.resolution,
        load_action=metadata.action_dim is not None,
        action_dim=metadata.action_dim,
        action_spaces=metadata.action_spaces,
        sthsth_root_path=flags.sthsth_root_path,
        whole_clips=True,
    )


def clips_of_split(flags: ClipFlags, config: DataConfig) -> EvaluationClips:
    """Build the clips of the split that the flags name."""
    split: Split = flags.split  # type: ignore[assignment]
    return build_evaluation_clips(config, split, flags.num_clips, flags.seed, at_most=MOST_CLIPS)


def evaluate_tokenizer(args: TokenizerEvaluationArgs) -> None:
    with joined_processes(args) as (device, processes):
        dtype = precision(args.dtype)
        dtype = fastest_precisions(device)[0] if dtype == "auto" else dtype
        tokenizer = load_tokenizer(args.pretrained_model_name_or_path, dtype).to(device)
        metadata = tokenizer_metadata(args, tokenizer)
        tokenizer.set_context_length(metadata.context_length)
        clips = clips_of_split(args, clip_config(args, metadata))
        scorer = FrameScorer(find_lpips(args.lpips_path, device), args.max_decode_batchsize)
        reconstructions = ReconstructionScorer(tokenizer, clips, scorer)
        folder = Path(args.output_path)
        evaluate_reconstructions(reconstructions, folder, args.reported(), args.batch_size, processes)


def tokenizer_metadata(args: TokenizerEvaluationArgs, tokenizer: CompressiveVQModel) -> ModelMetadata:
    """Return the form of the clips: from the flags, else from the world model that holds the tokenizer."""
    stated = ModelMetadata.read(model_folder(args.pretrained_model_name_or_path))
    context_length = args.context_length or tokenizer.context_length
    resolution = tokenizer.config.resolution
    known = stated or ModelMetadata(resolution, context_length)
    segment_length = args.segment_length or known.segment_length
    return ModelMetadata(resolution, context_length, segment_length, known.dataset_step)
