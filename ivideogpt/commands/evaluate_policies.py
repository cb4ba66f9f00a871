"""``python -m ivideogpt.evaluation policies``: its flags. Cheap to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ivideogpt.devices import DEVICES
from ivideogpt.errors import UserError, require
from ivideogpt.files import check_folder_can_be_written
from ivideogpt.flags import ACTION_SPACE_HELP, REQUIRED, option, parse


@dataclass(frozen=True, kw_only=True)
class PolicyArgs:
    """Play policies in Meta-World and in a world model from the same starts, and compare what they reach."""

    pretrained_model_name_or_path: str = option(REQUIRED, "folder or hub id of a world model with a reward head")
    task: str = option("plate-slide", "task of Meta-World, or module:id of a gymnasium environment")
    policies: tuple[str, ...] = option(
        ("scripted", "scripted:0.3", "scripted:0.6", "scripted:1", "scripted:2", "random"),
        "scripted, scripted:<standard deviation of its noise>, random, a folder of a run of mbrl/, or module:function "
        "from stacked frames (n, 3 K, H, W) uint8 to actions (n, D)",
    )
    episodes: int = option(20, "starts, the same for all policies", minimum=2)
    episode_length: int = option(50, "agent steps of an episode", minimum=1)
    frame_stack: int = option(3, "frames that a policy sees", minimum=1)
    success_threshold: float = option(
        0.5, "probability from which on an imagined step is a success", minimum=0, maximum=1
    )
    action_repeat: int = option(2, "simulator steps per agent step", minimum=1)
    camera: str = option("corner", "camera of the frames")
    batch_size: int = option(20, "imagined episodes at a time", minimum=1)
    seed: int = option(2000, "random seed of starts, noise and sampling", minimum=0)
    action_space: str | None = option(None, ACTION_SPACE_HELP)
    device: str = option("auto", "device of the model", choices=DEVICES)
    dtype: str = option("auto", "precision of the model", choices=("float32", "bfloat16", "auto"))
    output_path: str = option("outputs/policies", "folder of the report; policies that are in it are not played again")

    def validate(self) -> None:
        if len(set(self.policies)) < len(self.policies):
            raise UserError("--policies names one twice")
        check_folder_can_be_written(Path(self.output_path), "--output_path")


def main(argv: Sequence[str]) -> None:
    args = parse(PolicyArgs, argv)
    require("gymnasium", "metaworld", "mujoco", extra="mbrl")
    try:  # by name: the package knows no simulator, which is found where the project's folder is
        evaluation = import_module("mbrl.policy_evaluation")
    except ModuleNotFoundError as error:
        if error.name != "mbrl":
            raise
        raise UserError("the simulator is in the project's folder mbrl/: run this from the project's root") from error
    evaluation.run(args)
