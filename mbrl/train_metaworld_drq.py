"""Train DrQ-v2 on a Meta-World task.

    python mbrl/train_metaworld_drq.py task=plate_slide num_train_frames=100002 demo=true

Settings are given as key=value; the same command again goes on with an interrupted run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.errors import cli
from mbrl.command import run

if TYPE_CHECKING:
    from mbrl.settings import Settings


def parse(argv: Sequence[str], config_name: str = "config") -> tuple[Settings, dict[str, Any]]:
    from mbrl.settings import Settings, read_settings

    return read_settings(Settings, argv, config_name)


if __name__ == "__main__":
    cli(lambda: run(parse, __doc__, "config"))
