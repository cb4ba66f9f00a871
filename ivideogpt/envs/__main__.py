"""``python -m ivideogpt.envs export``: write an environment as a folder for LeRobot's EnvHub."""

import sys

from ivideogpt.commands.export_env import main
from ivideogpt.errors import cli

if __name__ == "__main__":
    cli(lambda: main(sys.argv[1:]))
