"""Training runs within the test's process."""

import json
from pathlib import Path

from ivideogpt.training.common.args import GptArgs, TokenizerArgs, parse
from ivideogpt.training.tokenizer.build import build_tokenizer_trainer
from ivideogpt.training.tokenizer.trainer import TokenizerTrainer
from ivideogpt.training.transformer.build import build_gpt_trainer
from ivideogpt.training.transformer.trainer import GptTrainer

TIMINGS = {"clips_per_s", "step_s", "data_s", "tokenize_s", "gradients_s", "optimizer_s", "memory_gb", "eta_min"}


def without(argv: list[str], *flags: str) -> list[str]:
    """A command less some flags with their values."""
    argv = argv.copy()
    for flag in flags:
        place = argv.index(flag)
        del argv[place : place + 2]
    return argv


def build_tokenizer(argv: list[str]) -> TokenizerTrainer:
    return build_tokenizer_trainer(parse(TokenizerArgs, argv))


def build_gpt(argv: list[str]) -> GptTrainer:
    return build_gpt_trainer(parse(GptArgs, argv))


def fit(trainer: TokenizerTrainer | GptTrainer) -> Path:
    """Returns the run's folder."""
    with trainer.run:
        trainer.fit()
    return trainer.run.directory


def metrics_of(run: Path) -> list[dict]:
    """The record without what differs from machine to machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]
