"""Control Meta-World's simulator by planning in a world model, and compare with random and scripted actions.

The same command goes on after an interruption: episodes that have a row in episodes.jsonl are skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from any directory, installed or not

from inference.predict import DTYPES
from ivideogpt.devices import DEVICES
from ivideogpt.errors import UserError, cli, require
from ivideogpt.files import check_folder_can_be_written
from ivideogpt.flags import ACTION_SPACE_HELP, BACKEND_HELP, option, parse
from ivideogpt.paths import BUNDLED_MODEL
from mbrl.envs.env_settings import CAMERAS, canonical_task, is_metaworld


@dataclass(frozen=True)
class PlanArgs:
    """Control a simulator by planning in a world model, and compare with random and scripted actions."""

    pretrained_model_name_or_path: str = option(str(BUNDLED_MODEL), "folder or hub id of an action-conditioned model")
    task: tuple[str, ...] = option(
        ("plate-slide",), "tasks of Meta-World (door-lock, door_lock), or environments as module:id (docs/planning.md)"
    )
    planner: str = option("icem", "planner (see docs/planning.md)", choices=("cem", "icem", "mppi"))
    objective: str = option(
        "goal",
        "goal: pixels of the image that the scripted episode ends with; latent: the same in the tokenizer's latent "
        "space; reward, success: the model's heads; vp2: as VP2 has it for RoboDesk, 0.5 * goal + 10 * classifier",
        choices=("goal", "latent", "reward", "success", "vp2"),
    )
    goals: tuple[str, ...] = option(
        (),
        "VP2's goals.hdf5 of each task, in their order: episodes begin in a state of the file, and its last image is "
        "the goal in place of the scripted episode's",
    )
    classifiers: tuple[str, ...] = option((), "VP2's classifier (.pt) of each task, in their order")
    horizon: int = option(10, "planned steps", minimum=1)
    num_candidates: int = option(64, "candidates of an iteration", minimum=1)
    num_iterations: int | None = option(None, "iterations of a decision (default: the planner's)", minimum=1)
    init_std: tuple[float, ...] = option(
        (0.5,), "standard deviation of the first iteration's noise, for all dimensions of an action or for each"
    )
    budget_seconds: float | None = option(None, "begin no iteration that would end a decision later", minimum=0)
    replan_every: int = option(5, "steps of a plan that are executed before the next one", minimum=1)
    idle_steps: int = option(0, "steps without action before the first plan (VP2: 1)", minimum=0)
    episodes: int = option(3, "episodes of each task", minimum=1)
    episode_length: int = option(50, "agent steps of an episode", minimum=1)
    action_repeat: int = option(2, "simulator steps per agent step, as in the model's data", minimum=1)
    camera: str = option("corner", "camera of the frames, as in the model's data", choices=CAMERAS)
    seed: int = option(0, "random seed of episodes, planning and sampling", minimum=0)
    output_path: str = option("outputs/planning", "folder of episodes.jsonl, report.md and GIFs")
    device: str = option("auto", "device of the model", choices=DEVICES)
    dtype: str = option("auto", "precision of the model; auto: the fastest on this device", choices=DTYPES)
    backend: str = option("auto", BACKEND_HELP)
    action_space: str | None = option(None, ACTION_SPACE_HELP)

    def validate(self) -> None:
        if self.replan_every > self.horizon:
            raise UserError(f"--replan_every is {self.replan_every}, but plans have --horizon {self.horizon} steps")
        for name, files in (("goals", self.goals), ("classifiers", self.classifiers)):
            if files and len(files) != len(self.task):
                raise UserError(f"--{name}: {len(files)} files for {len(self.task)} tasks: give each its own")
        if self.classifiers and self.objective != "vp2":
            raise UserError(f"--classifiers are for --objective vp2, not {self.objective}")
        if self.idle_steps >= self.episode_length:
            raise UserError(f"--idle_steps {self.idle_steps} leave none of --episode_length {self.episode_length}")
        if self.goals:
            require("h5py")
        on_metaworld = any(map(is_metaworld, self.task))
        require("gymnasium", *(("metaworld", "mujoco") if on_metaworld else ()), extra="mbrl")
        for task in self.task:
            canonical_task(task)
        check_folder_can_be_written(Path(self.output_path), "--output_path")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(PlanArgs, argv)
    # Parse first: importing PyTorch takes seconds.
    from inference.planning import run

    run(args)


if __name__ == "__main__":
    cli(main)
