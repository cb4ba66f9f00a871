"""Commands on data. Each is imported only when it runs, as some need the models of higher layers."""

from __future__ import annotations

import importlib
import sys

from ivideogpt.errors import UserError, cli

USAGE = "python -m ivideogpt.data"
COMMANDS = {
    "inspect": ("ivideogpt.data.inspect.command", "describe recorded episodes and their probable faults"),
    "preview": ("ivideogpt.commands.preview", "render recorded episodes with their actions"),
    "validate": ("ivideogpt.data.inspect.validate", "read every byte of every episode, and list the bad ones"),
    "tokenize": ("ivideogpt.training.transformer.tokenize_command", "store the tokens of clips for training"),
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        print(help_text())
        return
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; expected {USAGE} {{{','.join(COMMANDS)}}} ...")
    module, _ = COMMANDS[name]
    importlib.import_module(module).main(sys.argv[2:])


def help_text() -> str:
    lines = [f"  {name:<10}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join([f"usage: {USAGE} COMMAND ...", "", *lines, "", f"{USAGE} COMMAND --help lists a command's flags"])


if __name__ == "__main__":
    cli(main)
