"""Train a transformer on a tokenizer's tokens: ``accelerate launch train_gpt.py --help``, or plain ``python``."""

from __future__ import annotations

import sys

from ivideogpt.errors import cli
from ivideogpt.training.args import GptArgs, parse


def main() -> None:
    args = parse(GptArgs)
    # The libraries take seconds to import: wrong flags, and --help, are answered before.
    from ivideogpt.training.build_gpt import build_gpt_trainer
    from ivideogpt.training.debug import tiny_gpt_run
    from ivideogpt.training.dry_run import report

    trainer = build_gpt_trainer(tiny_gpt_run(args) if args.debug else args)
    if args.dry_run:
        trainer.run.say(report(trainer))
        return
    with trainer.run:
        trainer.evaluate() if args.eval_only else trainer.fit()
    sys.exit(trainer.run.exit_code)


if __name__ == "__main__":
    cli(main)
