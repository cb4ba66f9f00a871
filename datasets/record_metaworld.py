"""Record Meta-World episodes as npz files, for training world models or as demonstrations for model-based RL.

    python datasets/record_metaworld.py --tasks paper --output_path data/metaworld --num_episodes 60

writes `<output_path>/<task>/eps_<number>.npz` with one row per agent step: action[i] is taken at image[i], reward[i]
and success[i] are its results, and the last image has a zero action. An episode depends only on the seed, the task and
its number. Run the same command again to continue an interrupted recording.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.convert.conversion import keep_settings, write_episode
from ivideogpt.data.convert.workers import worker_pool
from ivideogpt.errors import UserError, cli
from ivideogpt.files import check_folder_can_be_written, remove_abandoned
from ivideogpt.flags import REQUIRED, option, parse
from mbrl.envs.agent_env import AgentEnv
from mbrl.envs.collection_policies import CollectionPolicies
from mbrl.envs.env_settings import (
    CAMERAS,
    PAPER_TASKS,
    EnvSettings,
    canonical_task,
    episode_rng,
    task_names,
)
from mbrl.envs.looks import FACTORS, check_factors
from mbrl.envs.offscreen import select_backend
from mbrl.envs.played_episode import play_episode
from mbrl.replay.demonstrations import ORIGINS, Demonstration

DEMO_ATTEMPTS = 20  # limit for each requested demonstration
SIMULATION = ("image_size", "action_repeat", "camera", "frame_stack", "paper_reward")  # flags that EnvSettings has too


@dataclass(frozen=True, kw_only=True)
class RecordArgs:
    """Record Meta-World episodes, for training world models or as demonstrations."""

    tasks: tuple[str, ...] = option(("paper",), "names (door-lock or door_lock), 'paper' for its six, or 'all'")
    output_path: str = option(REQUIRED, "folder that gets one folder per task")
    num_episodes: int = option(60, "episodes per task", minimum=1)
    episode_length: int = option(100, "agent steps; files have one more row", minimum=1)
    image_size: int = option(64, "width and height of the frames in pixels", minimum=1)
    action_repeat: int = option(2, "simulator steps per agent step", minimum=1)
    camera: str = option("corner", "camera of the frames", choices=tuple(CAMERAS))
    frame_stack: int = option(EnvSettings.frame_stack, "frames of an observation in a demonstration", minimum=1)
    succ_bonus: float = option(EnvSettings.success_bonus, "added to a demonstration's reward on success")
    paper_reward: bool = option(
        EnvSettings.paper_reward,
        "the paper's reward of button-press-topdown-wall, not that of Meta-World 3.1",
        negatable=True,
    )
    vary: tuple[str, ...] = option(
        (), f"looks that are new in each episode, to show what a model generalizes to: {', '.join(FACTORS)}"
    )
    seed: int = option(0, "random seed of all episodes", minimum=0)
    noise: tuple[float, ...] | None = option(
        None, "standard deviations of the noise on the scripted policy, taken in turn (default: 0 0.2 0.5 1; demo: 0)"
    )
    random_fraction: float | None = option(
        None, "part of the episodes with a random policy (default: 0.25; demo: 0)", minimum=0, maximum=1
    )
    wander: bool | None = option(
        None,
        "act randomly once the scripted policy has stopped (default: yes; demo: no)",
        negatable=True,
    )
    num_workers: int = option(os.cpu_count() or 1, "processes", minimum=1)
    demo: bool = option(False, "write successful episodes only, in the replay buffer's format")
    compress: bool = option(False, "smaller files, but slower to read windows from")

    def validate(self) -> None:
        for flag, usual in (("frame_stack", EnvSettings.frame_stack), ("succ_bonus", EnvSettings.success_bonus)):
            if getattr(self, flag) != usual and not self.demo:
                raise UserError(f"--{flag} concerns demonstrations alone: add --demo, or leave it out")
        for level in self.noise or ():
            if level < 0:
                raise UserError(f"--noise {level}: levels are standard deviations, 0 or more")
        check_factors(self.vary)
        find_tasks(self.tasks)
        check_folder_can_be_written(Path(self.output_path), "--output_path")

    @property
    def policies(self) -> CollectionPolicies:
        noise = self.noise or ((0.0,) if self.demo else (0.0, 0.2, 0.5, 1.0))
        random_fraction = (0.0 if self.demo else 0.25) if self.random_fraction is None else self.random_fraction
        return CollectionPolicies(noise, random_fraction, not self.demo if self.wander is None else self.wander)

    @property
    def noted(self) -> dict[str, Any]:
        """Return all settings that affect an episode, except its task and number."""
        noted = {name: getattr(self, name) for name in ("seed", "episode_length", *SIMULATION)}
        noted |= {"success_bonus": self.succ_bonus, "demo": self.demo, "noise": self.policies.noise_levels}
        noted |= {"random_fraction": self.policies.random_fraction, "wander": self.policies.wander}
        return noted | ({"vary": self.vary} if self.vary else {})

    def env(self, task: str) -> EnvSettings:
        same = {name: getattr(self, name) for name in SIMULATION}
        return EnvSettings(task, duration=self.episode_length, success_bonus=self.succ_bonus, vary=self.vary, **same)


def find_tasks(names: Sequence[str]) -> tuple[str, ...]:
    groups = {"all": task_names(), "paper": PAPER_TASKS}
    tasks = [task for name in names for task in groups.get(name, (name,))]
    return tuple(dict.fromkeys(canonical_task(task) for task in tasks))


_open: dict[EnvSettings, AgentEnv] = {}  # at most one, of 130 MB; making it costs half an episode


def open_environment(settings: EnvSettings) -> AgentEnv:
    """Return the open environment, if it has these settings; else close it and open one."""
    if settings not in _open:
        while _open:
            _open.popitem()[1].close()
        _open[settings] = settings.make()
    return _open[settings]


def record(args: RecordArgs, started: str, job: tuple[str, int]) -> bool:
    """Write the file of an episode, a task and a number; return False for a demonstration that failed.

    Args:
        started: time that starts the file names of all demonstrations.
    """
    task, number = job
    folder = Path(args.output_path) / task
    if any(folder.glob(f"*_{number}_*.npz" if args.demo else f"eps_{number:08d}.npz")):
        return True
    env = open_environment(args.env(task))
    rng = episode_rng(args.seed, task, number)
    env_seed = int(rng.integers(2**31))
    policy = args.policies.policy(task, env.env.workspace, number, rng)
    if not args.demo:
        simulator = env.env  # without the success bonus
        episode = play_episode(simulator, lambda frames: policy(simulator.state), env_seed, args.episode_length)
        write_episode(folder / f"eps_{number:08d}.npz", episode.arrays(), args.compress)
        return True
    env.reset(seed=env_seed)
    for _ in range(env.duration):
        env.step(np.clip(policy(env.env.state), -1, 1))
    if not env.success:
        return False
    demonstration = Demonstration(env.episode(), env_seed, {name: getattr(args.env(task), name) for name in ORIGINS})
    write_episode(folder / f"{started}_{number}_{args.episode_length}.npz", demonstration.arrays(), args.compress)
    return True


def record_all(args: RecordArgs) -> None:
    """Try episodes 0, 1, 2, ... of every task until it has as many files as asked for."""
    tasks = find_tasks(args.tasks)
    missing, attempts = dict.fromkeys(tasks, args.num_episodes), dict.fromkeys(tasks, 0)
    work = partial(record, args, f"{datetime.now():%Y%m%dT%H%M%S}")
    total = len(tasks) * args.num_episodes
    with worker_pool(args.num_workers) as run, tqdm(total=total, unit="episode") as progress:
        while jobs := [(task, attempts[task] + i) for task, wanted in missing.items() for i in range(wanted)]:
            for (task, number), saved in zip(jobs, run(work, jobs), strict=True):
                attempts[task] = number + 1
                missing[task] -= saved
                progress.set_postfix_str(task, refresh=False)
                progress.update(saved)
            for task, wanted in missing.items():
                if wanted and attempts[task] >= DEMO_ATTEMPTS * args.num_episodes:
                    raise UserError(
                        f"{task}: {args.num_episodes - wanted} of {args.num_episodes} demonstrations succeeded in "
                        f"{attempts[task]} attempts; try a longer --episode_length or less --noise"
                    )


def prepare_output(args: RecordArgs) -> None:
    """Make the folders and store the settings there. Raises UserError for a folder with other settings."""
    keep_settings(Path(args.output_path), args.noted, "recording.json")
    for task in find_tasks(args.tasks):
        folder = Path(args.output_path) / task
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)


def main() -> None:
    args = parse(RecordArgs)
    select_backend()  # before any folder is made; worker processes inherit the choice
    prepare_output(args)
    record_all(args)
    print(f"{args.num_episodes} episodes of {len(find_tasks(args.tasks))} tasks are in {args.output_path}")


if __name__ == "__main__":
    cli(main)
