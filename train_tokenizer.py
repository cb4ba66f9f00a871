"""Train a tokenizer: ``accelerate launch train_tokenizer.py --help``, or plain ``python``."""

from __future__ import annotations

import sys

from ivideogpt.errors import cli
from ivideogpt.training.common.args import TokenizerArgs, parse


def main() -> None:
    args = parse(TokenizerArgs)
    # Parse first: importing the libraries takes seconds.
    from ivideogpt.training.common.trial_runs import report, tiny_tokenizer_run
    from ivideogpt.training.tokenizer.build import build_tokenizer_trainer

    trainer = build_tokenizer_trainer(tiny_tokenizer_run(args) if args.debug else args)
    if args.dry_run:
        trainer.run.accelerator.print(report(trainer))
        return
    with trainer.run:
        trainer.fit()
    sys.exit(trainer.run.exit_code)


if __name__ == "__main__":
    cli(main)
