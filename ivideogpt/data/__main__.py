"""Commands on data. Each is imported when it is asked for, as some need the models of higher layers."""

from __future__ import annotations

import importlib
import sys

from ivideogpt.errors import UserError, cli

COMMANDS = {
    "inspect": "ivideogpt.data.inspect_episodes",
    "preview": "ivideogpt.evaluation.preview_episodes",
    "validate": "ivideogpt.data.validate_episodes",
    "tokenize": "ivideogpt.training.tokenize_dataset",
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; expected python -m ivideogpt.data {{{','.join(COMMANDS)}}} ...")
    importlib.import_module(COMMANDS[name]).main(sys.argv[2:])


if __name__ == "__main__":
    cli(main)
