"""Train a transformer on a tokenizer's tokens: ``accelerate launch train_gpt.py --help``, or plain ``python``."""

from __future__ import annotations

import sys

from ivideogpt.errors import cli
from ivideogpt.training.common.args import GptArgs, parse


def main() -> None:
    args = parse(GptArgs)
    # Parse first: importing the libraries takes seconds.
    from ivideogpt.training.common.trial_runs import report, tiny_gpt_run
    from ivideogpt.training.transformer.build import build_gpt_trainer

    trainer = build_gpt_trainer(tiny_gpt_run(args) if args.debug else args)
    if args.dry_run:
        trainer.run.accelerator.print(report(trainer))
        return
    with trainer.run:
        trainer.evaluate() if args.eval_only else trainer.fit()
    sys.exit(trainer.run.exit_code)


if __name__ == "__main__":
    cli(main)
