"""``python train_robot.py``: its flags, and the sizes behind ``--preset``. Cheap to import."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ivideogpt.errors import UserError
from ivideogpt.files import check_folder_can_be_written, file_stem
from ivideogpt.flags import option, parse
from ivideogpt.paths import BUNDLED_MODEL

OUTPUTS = "robots"
FOR_VIDEOS = ("fps", "skipped_actions", "action_columns", "action_offset")
PASSING = ("anyway", "dry_run", "output_path")  # may change from one call to the next
PATHS = ("recordings", "dataset", "pretrained_model_name_or_path")


@dataclass(frozen=True)
class Preset:
    """Sizes of a training. A tokenizer that does not know such pictures is trained ``FAR`` times as long."""

    most_episodes: int | None
    tokenizer_steps: int
    tokenizer_batch: int  # clips
    most_clips: int  # in the token store, augmented ones included
    passes: int  # copies of every clip in it
    transformer_steps: int
    transformer_batch: int  # clips
    learning_rate: float
    report_clips: int
    on_gpu: bool


PRESETS = {
    "try": Preset(20, 60, 4, 200, 1, 100, 4, 5e-4, 4, False),
    "cpu": Preset(None, 2_000, 4, 16_000, 4, 6_000, 4, 5e-4, 40, False),
    "gpu": Preset(None, 20_000, 16, 200_000, 4, 40_000, 16, 1e-4, 100, True),
}


@dataclass(frozen=True, kw_only=True)
class RobotArgs:
    """Train a world model from recordings of a robot: look, convert, tokenizer, tokens, transformer, export, report."""

    recordings: str | None = option(None, "folder of videos, each with a csv or npy table of actions beside it")
    dataset: str | None = option(
        None, "in place of videos: lerobot:<folder or hub id>, a folder of RLDS, or a folder of .npz episodes"
    )
    name: str | None = option(None, "name of the robot, and of the folder (default: that of the input)")
    output_path: str | None = option(None, f"folder for everything that is made (default: {OUTPUTS}/<name>)")
    preset: str | None = option(
        None,
        "sizes: try (minutes), cpu (a night), gpu (default: gpu if there is one, else cpu)",
        choices=tuple(PRESETS),
    )
    pretrained_model_name_or_path: str = option(str(BUNDLED_MODEL), "world model to start from: folder or hub id")
    camera: str | None = option(None, "camera of LeRobot or RLDS (default: the only one, or as their converters say)")
    action_key: str | None = option(None, "feature of LeRobot or RLDS that is the action (default: action)")
    frame_step: int = option(1, "use every N-th frame; actions in between are dropped", minimum=1)
    fps: float | None = option(None, "videos: frames per second to keep (default: all)")
    skipped_actions: str = option(
        "drop", "videos: treatment of the actions of frames that --fps drops", choices=("drop", "sum", "mean")
    )
    action_columns: str | None = option(None, "videos: names or numbers of the action columns, as x,y,grip")
    action_offset: int = option(0, "videos: row i + action_offset of a table is the action at frame i")
    segment_length: int | None = option(
        None, "frames of a clip, context included (default: 16, or the shortest episode's if that is shorter)"
    )
    seed: int = option(0, "random seed", minimum=0)
    anyway: bool = option(False, "train although something in the episodes would spoil it")
    dry_run: bool = option(False, "print the estimate of time, and stop")

    def validate(self) -> None:
        if (self.recordings is None) == (self.dataset is None):
            raise UserError(
                "give one of --recordings <folder of videos> and --dataset <lerobot:..., RLDS or npz folder>"
            )
        usual = {name: getattr(RobotArgs, name) for name in (*FOR_VIDEOS, "camera", "action_key")}
        foreign = ("camera", "action_key") if self.recordings else FOR_VIDEOS
        if given := [f"--{name}" for name in foreign if getattr(self, name) != usual[name]]:
            kind, other = ("videos", "--dataset") if self.recordings else ("data sets", "--recordings")
            raise UserError(f"{', '.join(given)} does nothing for {kind}: it goes with {other}")
        if self.fps is not None and self.frame_step > 1:
            raise UserError(f"--fps {self.fps} and --frame_step {self.frame_step} both choose frames: give one")
        if self.fps is None and self.skipped_actions != "drop":
            told = "--frame_step drops the actions in between" if self.frame_step > 1 else "no frame is left out"
            raise UserError(f"--skipped_actions {self.skipped_actions} needs --fps: without it {told}")
        if not file_stem(self.robot):
            raise UserError("the input has no name of its own: give --name")
        check_folder_can_be_written(self.folder, "--output_path")

    @property
    def source(self) -> str:
        return str(self.recordings or self.dataset)

    @property
    def robot(self) -> str:
        return self.name or self.own_name

    @property
    def own_name(self) -> str:
        """Return the name of the input's folder, or of its hub id."""
        path = Path(self.source.partition(":")[2] or self.source).resolve()
        named = path.parent if re.fullmatch(r"\d+\.\d+\.\d+", path.name) else path  # a version of RLDS
        return named.name.partition("@")[0]

    @property
    def folder(self) -> Path:
        return Path(self.output_path or Path(OUTPUTS, file_stem(self.robot)))

    def noted(self) -> dict[str, Any]:
        """Return what may not change when the command goes on."""
        noted = {name: value for name, value in asdict(self).items() if name not in PASSING}
        paths = {name: os.path.abspath(noted[name]) for name in PATHS if noted[name] and Path(noted[name]).exists()}
        return {**noted, **paths, "name": self.robot}


def main(argv: Sequence[str]) -> None:
    args = parse(RobotArgs, argv)
    from ivideogpt.commands.robot_training import train

    train(args)
