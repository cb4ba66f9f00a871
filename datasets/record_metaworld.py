"""Record Meta-World episodes as npz files, for training world models or as demonstrations for model-based RL.

    python datasets/record_metaworld.py --tasks paper --output_path data/metaworld --num_episodes 60

writes `<output_path>/<task>/eps_<number>.npz` with one row per agent step: action[i] is taken at image[i], reward[i]
and success[i] are what it earned, and the last image has a zero action. An episode depends on the seed, the task and
its number only. Run the same command again to continue an interrupted recording.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.convert.conversion import start_worker, worker_pool, write_episode
from ivideogpt.errors import UserError, cli
from ivideogpt.files import read_json, remove_abandoned, write_json
from mbrl.envs.agent_env import AgentEnv
from mbrl.envs.collection_policies import CollectionPolicies, Policy
from mbrl.envs.env_settings import ACTION_DIM, CAMERAS, PAPER_TASKS, EnvSettings, canonical_task, task_names
from mbrl.envs.metaworld_env import MetaWorldEnv
from mbrl.envs.offscreen import select_backend
from mbrl.envs.seeds import episode_rng
from mbrl.replay.demonstrations import ORIGINS, Demonstration

DEMO_ATTEMPTS = 20  # for each demonstration asked for; a scripted policy that fails more often is not worth waiting for


@dataclass(frozen=True)
class EpisodeConfig:
    """Everything that the content of an episode depends on, but for its task and number."""

    seed: int
    episode_length: int
    image_size: int
    action_repeat: int
    camera: str
    frame_stack: int  # this and the next of demonstrations only
    success_bonus: float
    paper_reward: bool
    noise: tuple[float, ...]
    random_fraction: float
    wander: bool
    demo: bool

    def env(self, task: str) -> EnvSettings:
        return EnvSettings(
            task=task,
            image_size=self.image_size,
            action_repeat=self.action_repeat,
            camera=self.camera,
            frame_stack=self.frame_stack,
            duration=self.episode_length,
            success_bonus=self.success_bonus,
            paper_reward=self.paper_reward,
        )


@dataclass(frozen=True)
class Config:
    tasks: tuple[str, ...]
    output_path: Path
    num_episodes: int
    num_workers: int
    compress: bool
    episode: EpisodeConfig
    started: str  # in the names of demonstrations: one time for all, so that they sort by their numbers


@dataclass(frozen=True)
class Episode:
    """N = episode_length + 1 rows."""

    image: np.ndarray  # (N, H, W, 3) uint8
    action: np.ndarray  # (N, 4) float32 in [-1, 1]
    reward: np.ndarray  # (N,) float32, without the success bonus
    success: np.ndarray  # (N,) bool


def record_episode(env: MetaWorldEnv, policy: Policy, seed: int, length: int) -> Episode:
    images = [env.reset(seed=seed)[0]]
    action = np.zeros((length + 1, ACTION_DIM), np.float32)
    reward = np.zeros(length + 1, np.float32)
    success = np.zeros(length + 1, bool)
    for i in range(length):
        action[i] = np.clip(policy(env.state), -1, 1)
        frame, reward[i], _, _, info = env.step(action[i])
        images.append(frame)
        success[i] = info["success"]
    return Episode(np.stack(images), action, reward, success)


def record_demonstration(env: AgentEnv, settings: EnvSettings, policy: Policy, seed: int) -> Demonstration | None:
    """None if it failed.

    Args:
        settings: that the environment was made with.
    """
    env.reset(seed=seed)
    for _ in range(env.duration):
        env.step(np.clip(policy(env.env.state), -1, 1))
    if not env.success:
        return None
    return Demonstration(env.episode(), seed, {name: getattr(settings, name) for name in ORIGINS})


class Recorder:
    """Records numbered episodes in one process. Keeps one environment open: making it costs half an episode."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._env: AgentEnv | None = None

    def record(self, task: str, number: int) -> bool:
        """Whether there is now a file for this episode: always, except for a demonstration that failed."""
        folder, settings = self._config.output_path / task, self._config.episode
        if any(folder.glob(f"*_{number}_*.npz" if settings.demo else f"eps_{number:08d}.npz")):
            return True
        env = self._environment(task)
        rng = episode_rng(settings.seed, task, number)
        env_seed = int(rng.integers(2**31))
        policies = CollectionPolicies(settings.noise, settings.random_fraction, settings.wander)
        policy = policies.policy(task, env.env.workspace, number, rng)
        if not settings.demo:
            episode = record_episode(env.env, policy, env_seed, settings.episode_length)
            write_episode(folder / f"eps_{number:08d}.npz", vars(episode), self._config.compress)
            return True
        demonstration = record_demonstration(env, settings.env(task), policy, env_seed)
        if demonstration is None:
            return False
        name = f"{self._config.started}_{number}_{settings.episode_length}.npz"
        write_episode(folder / name, demonstration.arrays(), self._config.compress)
        return True

    def _environment(self, task: str) -> AgentEnv:
        if self._env is None or self._env.env.task != task:
            self.close()
            self._env = self._config.episode.env(task).make()
        return self._env

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


_recorder: Recorder  # of a worker process


def _start_worker(config: Config) -> None:
    global _recorder
    start_worker()
    _recorder = Recorder(config)


def _record_in_worker(job: tuple[str, int]) -> bool:
    return _recorder.record(*job)


@contextmanager
def workers(config: Config) -> Iterator[Callable[[list[tuple[str, int]]], Iterator[bool]]]:
    """Yield a function that records jobs, in this process or in several, and says of each whether it left a file."""
    if config.num_workers == 1:
        with closing(Recorder(config)) as recorder:
            yield lambda jobs: itertools.starmap(recorder.record, jobs)
        return
    with worker_pool(config.num_workers, _start_worker, config) as run:
        yield lambda jobs: run(_record_in_worker, jobs)


def record_all(config: Config) -> None:
    """Try episodes 0, 1, 2, ... of every task until it has as many files as asked for."""
    missing = dict.fromkeys(config.tasks, config.num_episodes)
    attempts = dict.fromkeys(config.tasks, 0)
    total = len(config.tasks) * config.num_episodes
    with workers(config) as record, tqdm(total=total, unit="episode") as progress:
        while jobs := [(task, attempts[task] + i) for task, wanted in missing.items() for i in range(wanted)]:
            for (task, number), saved in zip(jobs, record(jobs), strict=True):
                attempts[task] = number + 1
                missing[task] -= saved
                progress.set_postfix_str(task, refresh=False)
                progress.update(saved)
            give_up_on_failing_demos(config, missing, attempts)


def give_up_on_failing_demos(config: Config, missing: dict[str, int], attempts: dict[str, int]) -> None:
    for task, wanted in missing.items():
        if wanted and attempts[task] >= DEMO_ATTEMPTS * config.num_episodes:
            raise UserError(
                f"{task}: {config.num_episodes - wanted} of {config.num_episodes} demonstrations succeeded in "
                f"{attempts[task]} attempts; try a longer --episode_length or less --noise"
            )


def prepare_output(config: Config) -> None:
    """Make the folders and note the settings there; a folder recorded with other settings is refused."""
    settings = json.loads(json.dumps(asdict(config.episode)))  # as they will be read back
    note = config.output_path / "recording.json"
    if note.exists():
        usual = vars(EnvSettings(""))  # what older notes lack had no other value then
        before = {**usual, **read_json(note, "delete it to go on with the settings given now, or use another folder")}
        differing = [
            f"{key} was {before.get(key)}, is {now}" for key, now in settings.items() if before.get(key) != now
        ]
        if differing:
            raise UserError(f"{config.output_path} holds other episodes ({'; '.join(differing)}): use another folder")
    try:
        for task in config.tasks:
            (config.output_path / task).mkdir(parents=True, exist_ok=True)
            remove_abandoned(config.output_path / task)
        write_json(note, settings)
    except OSError as error:
        raise UserError(f"cannot write to --output_path {config.output_path}: {error.strerror}") from error


def parse_args(argv: list[str] | None = None) -> Config:
    args = build_parser().parse_args(argv)
    check(args)
    if args.noise is None:
        args.noise = [0.0] if args.demo else [0.0, 0.2, 0.5, 1.0]
    if args.random_fraction is None:
        args.random_fraction = 0.0 if args.demo else 0.25
    return Config(
        tasks=parse_tasks(args.tasks),
        output_path=args.output_path,
        num_episodes=args.num_episodes,
        num_workers=args.num_workers,
        compress=args.compress,
        episode=EpisodeConfig(
            seed=args.seed,
            episode_length=args.episode_length,
            image_size=args.image_size,
            action_repeat=args.action_repeat,
            camera=args.camera,
            frame_stack=args.frame_stack,
            success_bonus=args.succ_bonus,
            paper_reward=args.paper_reward,
            noise=tuple(args.noise),
            random_fraction=args.random_fraction,
            wander=not args.demo if args.wander is None else args.wander,
            demo=args.demo,
        ),
        started=f"{datetime.now():%Y%m%dT%H%M%S}",
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tasks", nargs="+", default=["paper"], help="names (door-lock or door_lock), 'paper' for its six, or 'all'")
    add("--output_path", type=Path, required=True, help="gets one folder per task")
    add("--num_episodes", type=int, default=60, help="per task (default: %(default)s)")
    add("--episode_length", type=int, default=100, help="agent steps; files have a row more (default: %(default)s)")
    add("--image_size", type=int, default=64, help="in pixels (default: %(default)s)")
    add("--action_repeat", type=int, default=2, help="simulator steps per agent step (default: %(default)s)")
    add("--camera", default="corner", help=f"one of {', '.join(CAMERAS)} (default: %(default)s)")
    stack_help = "frames of an observation in a demonstration (default: %(default)s)"
    add("--frame_stack", type=int, default=EnvSettings.frame_stack, help=stack_help)
    bonus_help = "what success adds to a reward of a demonstration (default: %(default)s)"
    add("--succ_bonus", type=float, default=EnvSettings.success_bonus, help=bonus_help)
    reward_help = "the paper's reward of button-press-topdown-wall, not that of Meta-World 3.1 (default: yes)"
    add("--paper_reward", action=argparse.BooleanOptionalAction, default=EnvSettings.paper_reward, help=reward_help)
    add("--seed", type=int, default=0, help="default: %(default)s")
    noise_help = (
        "standard deviations of the noise on the scripted policy, taken in turn (default: 0 0.2 0.5 1; demo: 0)"
    )
    add("--noise", type=float, nargs="+", help=noise_help)
    add("--random_fraction", type=float, help="part of the episodes with a random policy (default: 0.25; demo: 0)")
    wander_help = "move on at random once the scripted policy has come to rest (default: yes; demo: no)"
    add("--wander", action=argparse.BooleanOptionalAction, help=wander_help)
    add("--num_workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    add("--demo", action="store_true", help="write successful episodes only, in the replay buffer's format")
    add("--compress", action="store_true", help="smaller files, but slow to read windows from")
    return parser


def check(args: argparse.Namespace) -> None:
    for flag in ("num_episodes", "episode_length", "image_size", "action_repeat", "frame_stack", "num_workers"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: must be at least 1")
    if not math.isfinite(args.succ_bonus):
        raise UserError(f"--succ_bonus {args.succ_bonus}: must be a finite number")
    for flag, usual in (("frame_stack", EnvSettings.frame_stack), ("succ_bonus", EnvSettings.success_bonus)):
        if getattr(args, flag) != usual and not args.demo:
            raise UserError(f"--{flag} concerns demonstrations alone: add --demo, or leave it out")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must not be negative")
    if args.camera not in CAMERAS:
        raise UserError(f"--camera {args.camera}: there are {', '.join(CAMERAS)}")
    for level in args.noise or ():
        if not (math.isfinite(level) and level >= 0):
            raise UserError(f"--noise {level}: levels are standard deviations, 0 or more")
    if args.random_fraction is not None and not 0 <= args.random_fraction <= 1:
        raise UserError(f"--random_fraction {args.random_fraction}: must be between 0 and 1")


def parse_tasks(names: list[str]) -> tuple[str, ...]:
    groups = {"all": task_names(), "paper": PAPER_TASKS}
    tasks = [task for name in names for task in groups.get(name, (name,))]
    return tuple(dict.fromkeys(canonical_task(task) for task in tasks))


def main() -> None:
    config = parse_args()
    select_backend()  # before any folder is made; worker processes inherit the choice
    prepare_output(config)
    record_all(config)
    print(f"{config.num_episodes} episodes of {len(config.tasks)} tasks are in {config.output_path}")


if __name__ == "__main__":
    cli(main)
