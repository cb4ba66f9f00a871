"""``python -m ivideogpt.evaluation``: score a world model on recorded episodes, beside its baselines."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ivideogpt.data.catalog import stepsize_as_trained
from ivideogpt.data.clips import DataConfig
from ivideogpt.data.dataset_mixes import resolve_mix
from ivideogpt.data.loaders import build_evaluation_clips
from ivideogpt.data.segments import SegmentSpec, segment_kind
from ivideogpt.errors import UserError, cli
from ivideogpt.evaluation.output import check_folder_can_be_written
from ivideogpt.evaluation.video_prediction import VideoScores, score_clips
from ivideogpt.flags import REQUIRED, option, parse
from ivideogpt.pretrained import ModelMetadata
from ivideogpt.world_model import WorldModel


@dataclass(frozen=True)
class EvaluationArgs:
    """Score a world model on recorded episodes, beside its baselines."""

    pretrained_model_name_or_path: str = option(REQUIRED, "folder or hub id of a world model")
    dataset_path: str = option(
        REQUIRED, "folder that holds one folder of .npz episodes per dataset, or lerobot:<folder>[@<camera>]"
    )
    oxe_data_mixes_type: str = option("folder:*", "datasets: a named mix, folder:<name>[,<name>...] or folder:*")
    split: str = option("test", "which episodes", choices=("train", "test", "all"))
    video_stepsize: int | None = option(None, "as in training; unless given, what the checkpoint says", minimum=1)
    num_clips: int = option(100, "clips, one of each episode in turn", minimum=1)
    batch_size: int = option(10, "clips at a time", minimum=2)
    late_frames: int = option(7, "also report the last so many frames by themselves", minimum=1)
    seed: int = option(0, "decides the clips and the sampled futures")
    device: str = option("cpu", "where the model runs")
    output_path: str | None = option(None, "write everything to this .json file")

    def validate(self) -> None:
        if self.num_clips % self.batch_size == 1:
            raise UserError("the last batch would hold one clip, whose actions cannot be shuffled: change --batch_size")
        if self.output_path is not None:
            if Path(self.output_path).is_dir():
                raise UserError(f"--output_path {self.output_path} is a folder: name a .json file")
            check_folder_can_be_written(Path(self.output_path).parent, "--output_path")


def evaluate(args: EvaluationArgs) -> VideoScores:
    model = WorldModel.from_pretrained(args.pretrained_model_name_or_path, args.device)
    config = data_config(args, model.metadata)
    clips = build_evaluation_clips(config, args.split, args.num_clips, args.seed)  # type: ignore[arg-type]
    total = -(-args.num_clips // args.batch_size)
    return score_clips(model, tqdm(clips, total=total, desc="batches", unit="batch"), args.seed)


def data_config(args: EvaluationArgs, metadata: ModelMetadata) -> DataConfig:
    """Clips of the form that the model was trained on."""
    mix = resolve_mix(args.oxe_data_mixes_type, args.dataset_path)
    return DataConfig(
        dataset_path=args.dataset_path,
        mix=mix,
        segment=SegmentSpec(
            segment_kind(goal_conditioned=metadata.goal_conditioned), metadata.segment_length, metadata.context_length
        ),
        video_stepsize=args.video_stepsize or stepsize_as_trained([name for name, _ in mix], metadata.dataset_step),
        image_size=metadata.resolution,
        batch_size=args.batch_size,
        load_action=metadata.action_dim is not None,
        action_dim=metadata.action_dim,
    )


def report(args: EvaluationArgs, scores: VideoScores) -> dict[str, Any]:
    last = scores.num_context + scores.frames["prediction"]["psnr"].shape[1] - 1
    spans = {(scores.num_context, last), (max(last - args.late_frames + 1, scores.num_context), last)}
    return {
        "arguments": asdict(args),
        "num_clips": scores.num_clips,
        "means": {f"frames {first}-{end}": scores.mean(first, end) for first, end in sorted(spans)},
        "per_frame": scores.per_frame(),
    }


def print_table(means: dict[str, dict[str, dict[str, float]]]) -> None:
    for span, of in means.items():
        print(f"\n{span:<20}{'PSNR':>8}{'SSIM':>8}{'PSNR, moving pixels':>22}")
        for name, values in of.items():
            label = name.replace("_", " ")
            print(f"{label:<20}{values['psnr']:>8.2f}{values['ssim']:>8.4f}{values['moving_psnr']:>22.2f}")


def main() -> None:
    args = parse(EvaluationArgs)
    result = report(args, evaluate(args))
    print_table(result["means"])
    if args.output_path is not None:
        Path(args.output_path).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output_path).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    cli(main)
