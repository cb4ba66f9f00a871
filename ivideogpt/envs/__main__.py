"""Commands on environments."""

import sys

from ivideogpt.errors import cli
from ivideogpt.flags import run_command

COMMANDS = {
    "export": ("ivideogpt.commands.export_env", "write an environment as a folder for LeRobot's EnvHub"),
    "serve": ("ivideogpt.commands.serve_env", "serve an environment to a trainer in another process"),
}


def main() -> None:
    run_command("python -m ivideogpt.envs", COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    cli(main)
