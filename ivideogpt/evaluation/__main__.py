"""``python -m ivideogpt.evaluation``: score a world model on recorded episodes; see also ``tokenizer``, ``compare``."""

from __future__ import annotations

import sys
from importlib import import_module

from ivideogpt.errors import cli

COMMANDS = {
    "tokenizer": "ivideogpt.commands.tokenizer_report",
    "compare": "ivideogpt.commands.compare_reports",
}
DEFAULT = "ivideogpt.commands.evaluate"


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    module = import_module(COMMANDS.get(name, DEFAULT))
    module.main(sys.argv[2:] if name in COMMANDS else sys.argv[1:])


if __name__ == "__main__":
    cli(main)
