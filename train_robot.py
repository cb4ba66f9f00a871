"""Train a world model from recordings of a robot: ``python train_robot.py --recordings recordings --name my_robot``."""

from __future__ import annotations

import sys

from ivideogpt.commands.train_robot import main
from ivideogpt.errors import cli

if __name__ == "__main__":
    cli(lambda: main(sys.argv[1:]))
