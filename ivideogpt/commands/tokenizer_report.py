"""``python -m ivideogpt.evaluation tokenizer``: report a tokenizer's reconstructions and its use of codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ivideogpt.commands.clip_flags import ClipFlags
from ivideogpt.flags import REQUIRED, option, parse


@dataclass(frozen=True, kw_only=True)
class TokenizerEvaluationArgs(ClipFlags):
    """Score a tokenizer's reconstructions of recorded episodes, dataset by dataset, and count the codes it uses."""

    pretrained_model_name_or_path: str = option(REQUIRED, "folder or hub id of a tokenizer, or of its world model")
    context_length: int | None = option(None, "context frames (default: the checkpoint's)", minimum=1)

    def validate(self) -> None:
        self.check_dataset_path()
        self.check_output_path()


def main(argv: Sequence[str]) -> None:
    args = parse(TokenizerEvaluationArgs, argv)
    from ivideogpt.commands.run_evaluation import evaluate_tokenizer

    evaluate_tokenizer(args)
