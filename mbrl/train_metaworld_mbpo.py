"""Train MBPO on a Meta-World task: DrQ-v2 that also learns from what a world model imagines.

    python mbrl/train_metaworld_mbpo.py task=plate_slide num_train_frames=100002 demo=true

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
    from mbrl.settings import MbpoSettings


def parse(argv: Sequence[str], config_name: str = "mbpo_config") -> tuple[MbpoSettings, dict[str, Any]]:
    from mbrl.settings import MbpoSettings, read_settings

    return read_settings(MbpoSettings, argv, config_name)


if __name__ == "__main__":
    cli(lambda: run(parse, __doc__, "mbpo_config"))
