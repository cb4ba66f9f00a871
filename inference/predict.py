"""Predict futures of a recorded episode and compare them with its true future.

Without arguments: the bundled model on a bundled episode. Flags override the settings of the checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from any directory, installed or not

from ivideogpt.data.catalog import dataset_info
from ivideogpt.data.formats.episodes import open_episode
from ivideogpt.devices import DEVICES
from ivideogpt.errors import UserError, cli
from ivideogpt.files import check_folder_can_be_written
from ivideogpt.flags import ACTION_SPACE_HELP, BACKEND_HELP, SAMPLING_RULES, option, parse
from ivideogpt.paths import BUNDLED_MODEL

BUNDLED_SAMPLES = ROOT / "inference" / "samples"
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PredictArgs:
    """Predict futures of a recorded episode with a world model and compare them with what happened."""

    pretrained_model_name_or_path: str = option(str(BUNDLED_MODEL), "folder or hub id of a world model")
    input_path: str | None = option(None, ".npz episode (default: a bundled one)")
    dataset_name: str | None = option(None, "dataset of the episode, which decides image array and frame distance")
    output_path: str = option("outputs", "folder for GIFs, contact sheet and metrics.json")
    context_length: int | None = option(None, "context frames t (default: the checkpoint's)", minimum=1)
    segment_length: int | None = option(None, "frames, context included (default: the checkpoint's)", minimum=1)
    horizon: int | None = option(None, "frames to predict, in place of segment_length", minimum=1)
    resolution: int | None = option(None, "size of the frames; has to match the checkpoint", minimum=1)
    action_conditioned: bool = option(False, "refuse an action-free checkpoint; other checkpoints always get actions")
    action_dim: int | None = option(None, "dimension of the actions; has to match the checkpoint", minimum=1)
    goal_conditioned: bool | None = option(None, "show the last frame first (default: as the checkpoint)")
    repeat_times: int = option(5, "futures to sample", minimum=1)
    temperature: float | None = option(None, "sampling temperature (default: the checkpoint's)")
    top_k: int | None = option(None, "sample from the k most likely tokens; 0: from all (default: the checkpoint's)")
    sampling_rule: str | None = option(
        None,
        "expected_code: the code nearest to the mean vector (default: the checkpoint's)",
        choices=SAMPLING_RULES,
    )
    seed: int = option(0, "random seed of the segment's start and of sampling", minimum=0, maximum=2**32 - 1)
    device: str = option("auto", "device of the model", choices=DEVICES)
    dtype: str = option("auto", "precision of the model; auto: the fastest on this device", choices=DTYPES)
    backend: str = option("auto", BACKEND_HELP)
    action_space: str | None = option(None, f"{ACTION_SPACE_HELP}; default: that of --dataset_name, if it names one")

    def validate(self) -> None:
        if self.segment_length and self.horizon:
            raise UserError("--segment_length counts the context and --horizon does not: give one of them")
        check_folder_can_be_written(Path(self.output_path), "--output_path")


def with_episode(args: PredictArgs) -> PredictArgs:
    """Return the arguments with an episode, by default the first bundled one. Checked before a model is loaded."""
    if args.input_path is None:
        samples = sorted(BUNDLED_SAMPLES.glob("*.npz"))
        if not samples:
            raise UserError(f"there is no bundled episode in {BUNDLED_SAMPLES}: name one with --input_path")
        print(f"episode: {samples[0]} (also there: {', '.join(path.name for path in samples[1:])})")
        args = replace(args, input_path=str(samples[0]))
    assert args.input_path is not None
    if not Path(args.input_path).is_file():
        raise UserError(f"--input_path {args.input_path}: no such file")
    open_episode(args.input_path, dataset_info(args.dataset_name or "").image_keys)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = with_episode(parse(PredictArgs, argv))
    # Parse first: importing PyTorch takes seconds.
    from inference.prediction import run

    run(args)


if __name__ == "__main__":
    cli(main)
