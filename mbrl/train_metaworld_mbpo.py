"""Train MBPO on a Meta-World task: DrQ-v2 that also learns from what a world model imagines.

    python mbrl/train_metaworld_mbpo.py task=plate_slide num_train_frames=100002 demo=true

Settings are given as key=value; the same command again goes on with an interrupted run.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.errors import cli
from mbrl.command import run

if __name__ == "__main__":
    cli(lambda: run(__doc__, is_mbpo=True))
