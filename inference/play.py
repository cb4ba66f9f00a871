"""Drive the imagined robot in a browser, beside the real simulator.

Without arguments: the bundled model, from real starts of Meta-World tasks if Meta-World is installed, and from the
bundled episodes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from any directory, installed or not

from inference.predict import DTYPES
from ivideogpt.devices import DEVICES
from ivideogpt.errors import UserError, cli, require
from ivideogpt.flags import ACTION_SPACE_HELP, BACKEND_HELP, option, parse
from ivideogpt.paths import BUNDLED_MODEL
from ivideogpt.web import WebArgs, check_web_packages, open_socket


@dataclass(frozen=True, kw_only=True)
class PlayArgs(WebArgs):
    """Drive a world model in a browser, frame by frame, beside the real simulator or a recorded episode."""

    pretrained_model_name_or_path: str = option(str(BUNDLED_MODEL), "folder or hub id of a world model")
    dataset_path: str | None = option(
        None,
        "episodes to start from: an .npz file, a folder of them, lerobot:<folder>, lance:<uri> (default: bundled)",
    )
    task: tuple[str, ...] | None = option(
        None, "Meta-World tasks to start from (default: the paper's six, where Meta-World is installed)"
    )
    agent: str | None = option(None, "folder of a run of mbrl/, whose agent can drive")
    device: str = option("auto", "device of the model", choices=DEVICES)
    dtype: str = option("auto", "precision of the model", choices=DTYPES)
    backend: str = option("auto", BACKEND_HELP)
    action_space: str | None = option(None, ACTION_SPACE_HELP)

    def validate(self) -> None:
        super().validate()
        if self.task and not has_simulator():
            require("metaworld", "mujoco", extra="mbrl")


def has_simulator() -> bool:
    return find_spec("metaworld") is not None and find_spec("mujoco") is not None


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(PlayArgs, argv)
    check_web_packages()
    if args.dataset_path and ":" not in args.dataset_path and not Path(args.dataset_path).exists():
        raise UserError(f"--dataset_path {args.dataset_path}: no such file or folder")
    if args.agent and not Path(args.agent).is_dir():
        raise UserError(f"--agent {args.agent}: no such folder; name that of a run of mbrl/")
    bound = open_socket(args)  # before a model is loaded
    from inference.playing import run

    run(args, bound, has_simulator())


if __name__ == "__main__":
    cli(main)
