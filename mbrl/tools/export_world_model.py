"""Write the world model of a run of MBPO as a model folder, for predict.py, evaluation, another run or the hub.

    python mbrl/tools/export_world_model.py log_mbrl/mbpo/plate_slide-seed1 --output pretrained_models/plate-slide

Takes the last snapshot; the run may still be going on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from any directory

from ivideogpt.errors import UserError, cli
from ivideogpt.files import check_folder_can_be_written
from ivideogpt.flags import Parser
from ivideogpt.training.export import DTYPES
from mbrl.run_folder import RunFolder

if TYPE_CHECKING:
    from ivideogpt.world_model import WorldModel


def world_model_of(run_dir: Path) -> WorldModel:
    """Return the model; UserError if no run of MBPO was saved here, or what it began with is not there any more."""
    from mbrl.build_video_predictor import build_world_model
    from mbrl.settings import WorldModelConfig, read
    from mbrl.snapshots import saved_state

    folder = RunFolder(run_dir)
    settings = folder.settings()
    if "world_model" not in settings:
        raise UserError(f"{run_dir} is a run of DrQ-v2, which has no world model")
    saved = saved_state(folder)
    if saved is None:
        raise UserError(f"{run_dir} was never saved: nothing to export yet")
    config = read(WorldModelConfig, settings["world_model"], "world_model.")
    model = build_world_model(config, seed=0)
    for name, network in (("tokenizer", model.tokenizer), ("transformer", model.transformer)):
        network.load_state_dict(saved["parts"]["world_model"][name])
    return model


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of the files")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    check_folder_can_be_written(args.output, "--output")
    import torch

    world_model_of(args.run).save_pretrained(args.output, getattr(torch, args.dtype))
    print(f"model folder: {args.output}")


if __name__ == "__main__":
    cli(main)
