"""Setup and error handling that the two training commands share."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ivideogpt.errors import UserError, require
from mbrl.heap import keep_freed_memory

if TYPE_CHECKING:
    from mbrl.settings import Settings

logger = logging.getLogger(__name__)

S = TypeVar("S", bound="Settings")
FLAGS = """
--multirun, -m       several values (seed=1,2,3) make several runs, one after another, each in its own folder
--first-run N        of those, begin with the Nth
--config-name, -cn   another file of mbrl/cfgs
"""


def read_settings(kind: type[S], config_name: str, argv: Sequence[str]) -> tuple[S, dict[str, Any]]:
    """Return checked settings, and the values that they were read from.

    Raises:
        UserError: a setting does not exist, or its value is not what it takes.
    """
    from mbrl.config_files import compose_config  # needs hydra, which may be missing
    from mbrl.settings import read

    config = compose_config(config_name, argv)
    settings = read(kind, config)
    settings.validate()
    return settings, config


def run(
    parse: Callable[[Sequence[str], str], tuple[S, dict[str, Any]]],
    train: Callable[[S, dict[str, Any]], int],
    description: str | None,
    config_name: str,
) -> None:
    """End with the exit code that ``train`` returns; ``--help`` lists the settings instead.

    Args:
        parse: the overrides of a run, and the name of their configuration.
    """
    require("hydra", "metaworld", "mujoco", extra="mbrl")
    from mbrl.config_files import CommandLine, help_text

    asks_for_help = bool({"-h", "--help"} & set(sys.argv))
    given = [argument for argument in sys.argv[1:] if argument not in ("-h", "--help")]
    line = CommandLine.read(given, config_name)
    if asks_for_help:
        print(f"{description}{FLAGS}\n{help_text(line.config_name)}")
        return
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("OpenGL").setLevel(logging.WARNING)
    runs = [parse(overrides, line.config_name) for overrides in line.runs[line.first_run - 1 :]]
    _check_folders([settings.run_dir for settings, _ in runs])
    settings, config = runs[0]
    if len(line.runs) > 1:
        logger.info("run %d of %d: %s", line.first_run, len(line.runs), settings.run_dir)
    code = train(settings, config)
    if code or len(runs) == 1:
        sys.exit(code)
    _start_again([*given, "--first-run", str(line.first_run + 1)])


def _check_folders(folders: Sequence[Path]) -> None:
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(
                f"several of these runs would be in {folder}: name the setting in their folder, such as "
                "exp_name='drq-lr${lr}'"
            )


def _start_again(arguments: Sequence[str]) -> None:
    """Replace this process by the command of the next run, with all memory and devices freed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, sys.argv[0], *arguments])
