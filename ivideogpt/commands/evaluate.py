"""``python -m ivideogpt.evaluation``: its flags, and those of its other commands. Cheap to import."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ivideogpt.commands import evaluate_policies
from ivideogpt.devices import DEVICES
from ivideogpt.errors import UserError
from ivideogpt.evaluation.protocols import PROTOCOLS
from ivideogpt.files import check_folder_can_be_written, write_text
from ivideogpt.flags import ACTION_SPACE_HELP, BACKEND_HELP, REQUIRED, SAMPLING_RULES, Parser, option, parse, redefine
from ivideogpt.paths import I3D_FILE, LPIPS_FOLDER

MOST_CLIPS = 100  # limit without --num_clips


@dataclass(frozen=True, kw_only=True)
class ClipFlags:
    """Flags of all evaluations."""

    pretrained_model_name_or_path: str
    dataset_path: str | None = option(
        None,
        "folder that holds a folder of .npz episodes per dataset, lerobot:<folder or hub id>[@<camera>] or lance:<uri>",
    )
    oxe_data_mixes_type: str = option("folder:*", "datasets: a named mix, folder:<name>[,<name>...] or folder:*")
    split: str = option("test", "split of the episodes", choices=("train", "test", "all"))
    video_stepsize: int | None = option(None, "distance of frames (default: the checkpoint's)", minimum=1)
    segment_length: int | None = option(
        None, "frames of a clip, context included (default: the checkpoint's)", minimum=1
    )
    num_clips: int | None = option(
        None, f"clips, taken from the episodes in turn (default: one of each episode, at most {MOST_CLIPS})", minimum=1
    )
    sthsth_root_path: str | None = option(None, "frame folders of Something-Something v2, for mixes that hold it")
    batch_size: int = option(10, "clips per batch", minimum=1)
    max_decode_batchsize: int | None = option(None, "batch size of LPIPS in frames, and of I3D in clips", minimum=1)
    lpips_path: str = option(LPIPS_FOLDER, "folder of the LPIPS weights; without them LPIPS is left out")
    seed: int = option(0, "random seed of the choice of clips and of sampling", minimum=0)
    device: str = option("auto", "device of the model; each of several processes gets its own GPU", choices=DEVICES)
    dtype: str = option("float32", "precision of the model", choices=("float32", "bfloat16", "auto"))
    output_path: str = option("outputs/evaluation", "folder of the report: report.md, report.json, pictures")

    def validate(self) -> None:
        self.check_dataset_path()
        if Path(self.output_path).suffix == ".json":
            raise UserError(f"--output_path {self.output_path}: name a folder, in which there will be report.json")
        check_folder_can_be_written(Path(self.output_path), "--output_path")

    def check_dataset_path(self, alternative: str = "") -> None:
        if self.dataset_path is None:
            raise UserError(f"--dataset_path is missing: name the folder of episodes{alternative}")

    def reported(self) -> dict[str, Any]:
        """Return the flags that are written into the report, the model first."""
        asked = asdict(self)
        del asked["output_path"]  # does not change the content
        return {"model": asked.pop("pretrained_model_name_or_path"), **asked}


@dataclass(frozen=True, kw_only=True)
class EvaluationArgs(ClipFlags):
    """Score a world model and baselines on recorded episodes; see also `tokenizer`, `compare` and `policies --help`."""

    pretrained_model_name_or_path: str = option(REQUIRED, "folder or hub id of a world model")
    use_eval_dataset: bool = option(False, "evaluation clips of the benchmark --oxe_data_mixes_type (see DATASET.yaml)")
    context_length: int | None = option(None, "context frames (default: the checkpoint's)", minimum=1)
    protocol: str = option(
        "both",
        "paper: all frames, the best of samples by each metric; future: predicted frames, mean of samples, best sample",
        choices=tuple(PROTOCOLS),
    )
    num_samples: int = option(1, "futures sampled for each clip; 100 in the paper", minimum=1)
    goal_conditioned: bool | None = option(None, "show the last frame first (default: as the checkpoint)")
    temperature: float | None = option(None, "sampling temperature (default: the checkpoint's)")
    top_k: int | None = option(None, "sample from the k likeliest; 0: from all (default: the checkpoint's)", minimum=0)
    sampling_rule: str | None = option(
        None, "expected_code: the code nearest to the mean vector (default: the checkpoint's)", choices=SAMPLING_RULES
    )
    separators: str | None = option(
        None, "sampled: like other tokens, as released action-free models did", choices=("forced", "sampled")
    )
    action_space: str | None = option(None, f"{ACTION_SPACE_HELP}; here: for datasets that no space names")
    backend: str = option("auto", BACKEND_HELP)
    max_generate_batchsize: int = option(100, "batch size of sampling, in futures", minimum=1)
    i3d_path: str = option(I3D_FILE, "I3D network; without it FVD is left out")

    def check_dataset_path(self, alternative: str = ", or --use_eval_dataset for a benchmark") -> None:
        if not self.use_eval_dataset:
            super().check_dataset_path(alternative)
        elif given := [f"--{name}" for name, usual in NOT_FOR_BENCHMARKS.items() if getattr(self, name) != usual]:
            raise UserError(f"{', '.join(given)}: --use_eval_dataset has its own clips; leave these flags out")
        elif self.oxe_data_mixes_type == EvaluationArgs.oxe_data_mixes_type:
            raise UserError("--use_eval_dataset needs the benchmark's name as --oxe_data_mixes_type, such as bair")


NOT_FOR_BENCHMARKS = {"dataset_path": None, "split": "test", "video_stepsize": None, "goal_conditioned": None}


@dataclass(frozen=True, kw_only=True)
class TokenizerEvaluationArgs(ClipFlags):
    """Score a tokenizer's reconstructions of recorded episodes, dataset by dataset, and count the codes it uses."""

    pretrained_model_name_or_path: str = option(REQUIRED, "folder or hub id of a tokenizer, or of its world model")
    context_length: int | None = option(None, "context frames (default: the checkpoint's)", minimum=1)
    output_path: str = redefine(ClipFlags, "output_path", "outputs/tokenizer-evaluation")


def main(argv: Sequence[str]) -> None:
    """Report on a world model's predictions of recorded episodes, unless the first word names another command."""
    if argv[:1] == ["compare"]:
        return compare_reports(argv[1:])
    if argv[:1] == ["tokenizer"]:
        flags = parse(TokenizerEvaluationArgs, argv[1:])
        from ivideogpt.commands.run_evaluation import evaluate_tokenizer

        return evaluate_tokenizer(flags)
    if argv[:1] == ["policies"]:
        return evaluate_policies.main(argv[1:])
    if argv and not argv[0].startswith("-"):
        raise UserError(f"unknown command {argv[0]!r}: expected compare, tokenizer, policies, or flags alone")
    args = parse(EvaluationArgs, argv)
    from ivideogpt.commands.run_evaluation import evaluate_world_model

    return evaluate_world_model(args)


def compare_reports(argv: Sequence[str]) -> None:
    args = parse_compared(argv)
    from ivideogpt.evaluation.comparison import Report, compare

    text = compare([Report.read(path) for path in args.report])
    print(text)
    if args.output_path is not None:
        args.output_path.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.output_path, text + "\n")


def parse_compared(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of ``compare``, which takes reports without a flag."""
    parser = Parser(
        prog="python -m ivideogpt.evaluation compare",
        description="Compare reports of one kind side by side, clip by clip if they are on the same clips.",
        allow_abbrev=False,
    )
    parser.add_argument("report", nargs="+", type=Path, help="folder of a report, or its report.json")
    parser.add_argument("--output_path", type=Path, help="also write the tables to this .md file")
    args = parser.parse_args(argv)
    if len(args.report) < 2:
        raise UserError("one report was named, expected at least two to compare")
    if args.output_path is not None:
        if args.output_path.is_dir():
            raise UserError(f"--output_path {args.output_path} is a folder: name a .md file")
        check_folder_can_be_written(args.output_path.parent, "--output_path")
    return args
