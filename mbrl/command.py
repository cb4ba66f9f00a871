"""What the two training commands have in common around their training."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

from ivideogpt.errors import require
from mbrl.heap import keep_freed_memory


def run(train: Callable[[Sequence[str]], int], description: str | None, config_name: str) -> None:
    """Ends with the exit code that ``train`` returns; ``--help`` lists the settings instead."""
    require("hydra", "metaworld", "mujoco", extra="mbrl")
    if {"-h", "--help"} & set(sys.argv):
        from mbrl.config_files import help_text

        print(f"{description}\n{help_text(config_name)}")
        return
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("OpenGL").setLevel(logging.WARNING)
    sys.exit(train(sys.argv[1:]))
