"""Commands on data. Some need the models of higher layers."""

import sys

from ivideogpt.errors import cli
from ivideogpt.flags import run_command

COMMANDS = {
    "inspect": ("ivideogpt.data.inspect.command", "describe recorded episodes and their probable faults"),
    "preview": ("ivideogpt.commands.preview", "render recorded episodes with their actions"),
    "validate": ("ivideogpt.data.inspect.validate", "read every byte of every episode, and list the bad ones"),
    "tokenize": ("ivideogpt.training.transformer.tokenize_command", "store the tokens of clips for training"),
}


def main() -> None:
    run_command("python -m ivideogpt.data", COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    cli(main)
