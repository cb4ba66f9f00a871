"""``python -m ivideogpt.evaluation``: a report on a world model's predictions of recorded episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ivideogpt.choices import BACKEND_HELP, SAMPLING_RULES
from ivideogpt.commands.clip_flags import ClipFlags
from ivideogpt.errors import UserError
from ivideogpt.evaluation.protocols import PROTOCOLS
from ivideogpt.flags import REQUIRED, option, parse
from ivideogpt.paths import I3D_FILE


@dataclass(frozen=True, kw_only=True)
class EvaluationArgs(ClipFlags):
    """Score a world model and baselines on recorded episodes; see also `tokenizer --help` and `compare --help`."""

    pretrained_model_name_or_path: str = option(REQUIRED, "folder or hub id of a world model")
    use_eval_dataset: bool = option(
        False, "the evaluation clips of the benchmark that --oxe_data_mixes_type names (DATASET.yaml says where)"
    )
    context_length: int | None = option(None, "context frames (default: the checkpoint's)", minimum=1)
    protocol: str = option(
        "both",
        "paper: all frames, the best of samples by each metric; future: predicted frames, mean of samples, best sample",
        choices=tuple(PROTOCOLS),
    )
    num_samples: int = option(1, "futures sampled for each clip; 100 in the paper", minimum=1)
    goal_conditioned: bool | None = option(None, "show the last frame first (default: as the checkpoint)")
    temperature: float | None = option(None, "sampling temperature (default: the checkpoint's)")
    top_k: int | None = option(
        None, "sample from the k most likely tokens; 0: from all (default: the checkpoint's)", minimum=0
    )
    sampling_rule: str | None = option(
        None,
        "expected_code: the code nearest to the mean vector (default: the checkpoint's)",
        choices=SAMPLING_RULES,
    )
    separators: str | None = option(
        None,
        "sampled: sample separators like other tokens, as released action-free models did",
        choices=("forced", "sampled"),
    )
    backend: str = option("auto", BACKEND_HELP)
    max_generate_batchsize: int = option(100, "batch size of sampling, in futures", minimum=1)
    i3d_path: str = option(I3D_FILE, "I3D network; without it FVD is left out")

    def validate(self) -> None:
        if not self.use_eval_dataset:
            self.check_dataset_path(", or --use_eval_dataset for a benchmark")
        elif given := [f"--{name}" for name, usual in NOT_FOR_BENCHMARKS.items() if getattr(self, name) != usual]:
            raise UserError(f"{', '.join(given)}: --use_eval_dataset has its own clips; leave these flags out")
        elif self.oxe_data_mixes_type == EvaluationArgs.oxe_data_mixes_type:
            raise UserError("--use_eval_dataset needs the benchmark's name as --oxe_data_mixes_type, such as bair")
        self.check_output_path()


NOT_FOR_BENCHMARKS = {"dataset_path": None, "split": "test", "video_stepsize": None, "goal_conditioned": None}


def main(argv: Sequence[str]) -> None:
    args = parse(EvaluationArgs, argv)
    from ivideogpt.commands.run_evaluation import evaluate_world_model

    evaluate_world_model(args)
