"""Setup and error handling that the two training commands share."""

from __future__ import annotations

import ctypes
import logging
import os
import sys

from ivideogpt.errors import UserError, require

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
FLAGS = """
--multirun, -m       several values (seed=1,2,3) make several runs, one after another, each in its own folder
--first-run N        of those, begin with the Nth
--config-name, -cn   another file of mbrl/cfgs
"""


def run(description: str | None, is_mbpo: bool) -> None:
    """Train, and end with the exit code of that; ``--help`` lists the settings instead."""
    require("hydra", "metaworld", "mujoco", extra="mbrl")
    from mbrl.config_files import CommandLine, help_text

    asks_for_help = bool({"-h", "--help"} & set(sys.argv))
    given = [argument for argument in sys.argv[1:] if argument not in ("-h", "--help")]
    line = CommandLine.read(given, "mbpo_config" if is_mbpo else "config")
    if asks_for_help:
        print(f"{description}{FLAGS}\n{help_text(line.config_name)}")
        return
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("OpenGL").setLevel(logging.WARNING)
    from mbrl.settings import MbpoSettings, Settings, read_settings

    kind = MbpoSettings if is_mbpo else Settings
    runs = [read_settings(kind, overrides, line.config_name) for overrides in line.runs[line.first_run - 1 :]]
    folders = [settings.run_dir for settings, _ in runs]
    if shared := [folder for folder in folders if folders.count(folder) > 1]:
        raise UserError(
            f"several of these runs would be in {shared[0]}: name the setting in their folder, such as "
            "exp_name='drq-lr${lr}'"
        )
    if len(line.runs) > 1:
        logger.info("run %d of %d: %s", line.first_run, len(line.runs), folders[0])
    from mbrl import build_trainer

    code = build_trainer.train(*runs[0])
    if code or len(runs) == 1:
        sys.exit(code)
    # Replace this process by the command of the next run, with all memory and devices freed.
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, sys.argv[0], *given, "--first-run", str(line.first_run + 1)])


def keep_freed_memory() -> None:
    """Use freed memory again instead of giving it back to the system: for commands to call before anything else.

    The buffers of a CPU update, some tens of megabytes each, would otherwise be fetched anew and zeroed page by page
    every time, which is a quarter of an update of DrQ-v2. Does nothing without GNU's C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
