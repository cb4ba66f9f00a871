"""Replay recorded demonstrations and check that their actions, from their seeds, give the same rewards and frames.

    python mbrl/tools/check_demonstrations.py demonstrations --tasks plate-slide

Frames alone may differ between OpenGL libraries; rewards that do are an error.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from any directory

import numpy as np

from ivideogpt.errors import UserError, cli
from ivideogpt.flags import Parser
from mbrl.envs.env_settings import EnvSettings, canonical_task
from mbrl.replay.demonstrations import Demonstration

TOLERANCE = 1e-3  # for a step's reward, at most 30: other processors round differently


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", type=Path, help="folder of the tasks' folders")
    parser.add_argument("--tasks", nargs="+", help="default: all that there are")
    args = parser.parse_args(argv)
    paths = find(args.prefix, args.tasks)
    wrong = [path for path in paths if not check(path)]
    if wrong:
        raise UserError(f"{len(wrong)} of {len(paths)} demonstrations do not earn their rewards again, as {wrong[0]}")


def find(prefix: Path, tasks: list[str] | None) -> list[Path]:
    patterns = [f"{canonical_task(task)}/*.npz" for task in tasks] if tasks else ["*/*.npz"]
    paths = [path for pattern in patterns for path in sorted(prefix.glob(pattern))]
    if not paths:
        raise UserError(f"no demonstrations in {prefix} ({' '.join(patterns)})")
    return paths


def check(path: Path) -> bool:
    """Print the result; return whether the demonstration earns its rewards again."""
    demonstration = Demonstration.from_file(path)
    if demonstration.seed is None:
        raise UserError(f"{path} holds no seed, as published demonstrations: it cannot be replayed")
    error, num_frames = replay(demonstration, EnvSettings(canonical_task(path.parent.name)))
    print(f"{path}: rewards differ by {error:.2g} at most, {num_frames} frames differ")
    return error <= TOLERANCE


def replay(demonstration: Demonstration, settings: EnvSettings) -> tuple[float, int]:
    """Replay the actions from the demonstration's seed, under its own settings and else these.

    Returns the largest difference of a reward, and the number of frames that differ in any pixel.
    """
    episode = demonstration.episode
    with closing(replace(demonstration.settings(settings), duration=episode.num_steps).make()) as env:
        env.reset(seed=demonstration.seed)
        for action in episode.action[1:]:
            env.step(np.clip(action, -1, 1))
        again = env.episode()
    different = (again.frames != episode.frames).any(axis=(1, 2, 3))
    return float(np.abs(again.reward - episode.reward).max()), int(different.sum())


if __name__ == "__main__":
    cli(main)
