"""``python -m ivideogpt.evaluation``: a report on a world model's predictions of recorded episodes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ivideogpt.commands.clip_flags import ClipFlags, clip_config, clips_of_split
from ivideogpt.data.clips.evaluation_clips import EvaluationClips, build_benchmark_evaluation
from ivideogpt.errors import UserError
from ivideogpt.evaluation.model_settings import BACKEND_HELP, ModelSettings, flags_for_several, with_settings
from ivideogpt.evaluation.prediction_report import evaluate_predictions
from ivideogpt.evaluation.processes import leave_processes
from ivideogpt.evaluation.protocols import PROTOCOLS
from ivideogpt.evaluation.report import MARKDOWN_FILE
from ivideogpt.evaluation.video_prediction import CANDIDATES, FVD_SPANS, PredictionScorer
from ivideogpt.flags import REQUIRED, option, parse
from ivideogpt.metrics.frame_metrics import FrameScorer, find_i3d, find_lpips
from ivideogpt.paths import I3D_FILE
from ivideogpt.pretrained import ModelMetadata
from ivideogpt.transformer import SAMPLING_RULES
from ivideogpt.world_model import WorldModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationArgs(ClipFlags):
    """Score a world model on recorded episodes, beside its baselines; `tokenizer --help`, `compare --help` for more."""

    pretrained_model_name_or_path: str = option(REQUIRED, "folder or hub id of a world model")
    use_eval_dataset: bool = option(
        False, "the evaluation clips of the benchmark that --oxe_data_mixes_type names (DATASET.yaml says where)"
    )
    context_length: int | None = option(None, "context frames; unless given, the checkpoint's", minimum=1)
    protocol: str = option(
        "both",
        "paper: all frames, the best of samples by each metric; future: predicted frames, mean of samples, best sample",
        choices=tuple(PROTOCOLS),
    )
    num_samples: int = option(1, "futures of each clip; 100 in the paper", minimum=1)
    goal_conditioned: bool | None = option(None, "show the last frame first; unless given, what the checkpoint says")
    temperature: float | None = option(None, "of sampling; unless given, the checkpoint's")
    top_k: int | None = option(None, "sample among so many tokens, 0: all; unless given, the checkpoint's", minimum=0)
    sampling_rule: str | None = option(
        None,
        "expected_code: the code nearest to the mean vector; unless given, the checkpoint's",
        choices=SAMPLING_RULES,
    )
    separators: str | None = option(
        None, "sampled: drawn like any token, as released action-free models did", choices=("forced", "sampled")
    )
    backend: str = option("auto", BACKEND_HELP)
    max_generate_batchsize: int = option(100, "futures that are sampled at a time", minimum=1)
    i3d_path: str = option(I3D_FILE, "I3D network; without it FVD is left out")

    def validate(self) -> None:
        if not self.use_eval_dataset:
            self.check_dataset_path(", or --use_eval_dataset for a benchmark")
        elif given := [f"--{name}" for name, usual in NOT_FOR_BENCHMARKS.items() if getattr(self, name) != usual]:
            raise UserError(f"{', '.join(given)}: --use_eval_dataset has its own clips; leave that out")
        elif self.oxe_data_mixes_type == EvaluationArgs.oxe_data_mixes_type:
            raise UserError("--use_eval_dataset needs the benchmark's name as --oxe_data_mixes_type, such as bair")
        self.check_output_path()


NOT_FOR_BENCHMARKS = {"dataset_path": None, "split": "test", "video_stepsize": None, "goal_conditioned": None}


def main(argv: Sequence[str]) -> None:
    args = parse(EvaluationArgs, argv)
    device, processes = args.open()
    try:
        model = load_model(args, device)
        scorer = build_scorer(args, model, device)
        settings = replace(args, num_samples=scorer.num_samples).reported()
        clips, folder = load_clips(args, model.metadata), Path(args.output_path)
        report = evaluate_predictions(scorer, clips, folder, settings, args.protocol, args.batch_size, processes)
        if report is not None:
            print((folder / MARKDOWN_FILE).read_text().split("## Frame by frame")[0])
            print(f"report: {folder / MARKDOWN_FILE}")
    finally:
        leave_processes()


def load_model(args: EvaluationArgs, device: torch.device) -> WorldModel:
    model = WorldModel.from_pretrained(args.pretrained_model_name_or_path, device, args.precision, args.backend)
    settings = ModelSettings(
        context_length=args.context_length,
        segment_length=args.segment_length,
        goal_conditioned=args.goal_conditioned,
        temperature=args.temperature,
        top_k=args.top_k,
        separators=args.separators,  # type: ignore[arg-type]
        sampling_rule=args.sampling_rule,  # type: ignore[arg-type]
    )
    return with_settings(model, settings)


def load_clips(args: EvaluationArgs, metadata: ModelMetadata) -> EvaluationClips:
    config = clip_config(args, metadata)
    if not args.use_eval_dataset:
        return clips_of_split(args, config)
    if metadata.goal_conditioned:
        raise UserError("--use_eval_dataset: the clips of benchmarks have no goal in front, and this model wants one")
    return build_benchmark_evaluation(config, args.num_clips)


def build_scorer(args: EvaluationArgs, model: WorldModel, device: torch.device) -> PredictionScorer:
    num_samples = args.num_samples
    if num_samples > 1 and model.metadata.generation.is_deterministic:
        several = flags_for_several(model.metadata.generation)
        logger.warning("one sample of each clip: the checkpoint's leave nothing to chance; %s draws several", several)
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
