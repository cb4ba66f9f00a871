"""Record episodes of any environment of gymnasium that renders, as npz files for training world models.

    python datasets/record.py --env Reacher-v5 --policy random --output_path data --num_episodes 200

writes `<output_path>/<env>/eps_<number>.npz` with one row per agent step: action[i] is taken at image[i], reward[i] and
success[i] are its results, and the last image has a zero action. Actions are in [-1, 1], as agents of `task=gym:<env>`
give them; a choice of n is a vector of n. An episode depends only on the flags and its number. Run the same command
again to continue an interrupted recording. Meta-World has a recorder of its own, record_metaworld.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.catalog import TEST_EVERY
from ivideogpt.data.convert.conversion import keep_settings, write_episode
from ivideogpt.data.convert.workers import worker_pool
from ivideogpt.data.formats.npz_arrays import npz_members
from ivideogpt.errors import UserError, cli, require
from ivideogpt.files import check_folder_can_be_written, file_stem, remove_abandoned
from ivideogpt.flags import REQUIRED, option, parse
from mbrl.envs.collection_policies import CorrelatedNoise, imported_policy
from mbrl.envs.env_settings import episode_rng
from mbrl.envs.played_episode import Act, play_episode
from mbrl.envs.rendered_env import RenderedEnv
from mbrl.envs.users_code import users_function

ALGORITHMS = ("a2c", "ddpg", "dqn", "ppo", "sac", "td3")  # classes of stable-baselines3, in small letters
FREE_FLAGS = ("output_path", "num_episodes", "num_workers", "compress")  # do not affect an episode
OBSERVATIONS = "observations of the environment"
OwnPolicy = Callable[[Any], Any]  # the environment's own observation -> its own action


@dataclass(frozen=True, kw_only=True)
class RecordArgs:
    """Record episodes of any environment of gymnasium that renders."""

    env: str = option(REQUIRED, "environment of gymnasium that renders, such as Reacher-v5; module:id imports module")
    policy: str = option(
        "random",
        "random; scripted: the environment's method scripted_policy; module:function, a function of environment and "
        "random generator that returns one from observation to action; or sac:agent.zip (ppo, td3, ...), an agent of "
        "stable-baselines3",
    )
    output_path: str = option(REQUIRED, "folder that gets a folder named like the environment")
    num_episodes: int = option(60, "number of episodes", minimum=1)
    episode_length: int = option(100, "limit of agent steps; files have one more row", minimum=1)
    image_size: int = option(64, "width and height of the frames in pixels", minimum=1)
    action_repeat: int = option(1, "environment steps per agent step", minimum=1)
    noise: tuple[float, ...] = option(
        (0.0, 0.2, 0.5, 1.0), "standard deviations of the noise on the policy's actions in [-1, 1], taken in turn"
    )
    random_fraction: float = option(0.25, "part of the episodes with a random policy", minimum=0, maximum=1)
    seed: int = option(0, "random seed of all episodes", minimum=0)
    num_workers: int = option(os.cpu_count() or 1, "processes", minimum=1)
    compress: bool = option(False, "smaller files, but slower to read windows from")

    def validate(self) -> None:
        if min(self.noise) < 0:
            raise UserError(f"--noise {min(self.noise)}: levels are standard deviations, 0 or more")
        check_folder_can_be_written(self.folder, "--output_path")

    @property
    def folder(self) -> Path:
        return Path(self.output_path) / file_stem(self.env)

    def file(self, number: int) -> Path:
        return self.folder / f"eps_{number:08d}.npz"


@cache
def open_environment(args: RecordArgs) -> RenderedEnv:
    return RenderedEnv(args.env, args.image_size, args.action_repeat)


def episode_policy(args: RecordArgs, env: RenderedEnv, number: int, rng: np.random.Generator) -> Act:
    """Return the policy of an episode: a random one now and then, else the one asked for, with noise."""
    size = env.action_space.shape[0]
    if args.policy == "random" or rng.random() < args.random_fraction:
        noise = CorrelatedNoise(1.0, False, rng, size)
        return lambda frames: noise()
    shift = number // TEST_EVERY  # or all test episodes would have the first level
    noise = CorrelatedNoise(args.noise[(number + shift) % len(args.noise)], False, rng, size)
    act = find_policy(args.policy, env, rng)
    return lambda frames: env.from_inner(act(env.state)) + noise()


def find_policy(name: str, env: RenderedEnv, rng: np.random.Generator) -> OwnPolicy:
    """Return the policy of an episode that begins; UserError if there is none of this name."""
    kind, _, rest = name.partition(":")
    if name == "scripted":
        if not hasattr(env.inner.unwrapped, "scripted_policy"):
            raise UserError(f"--policy scripted: {type(env.inner.unwrapped).__name__} has no method scripted_policy")
        act = users_function("policy scripted", env.inner.unwrapped.scripted_policy(), "nothing")
        return lambda observation: act()
    if kind in ALGORITHMS and rest:
        agent = trained_agent(kind, rest)
        return users_function(f"policy {name}", lambda state: agent.predict(state, deterministic=True)[0], OBSERVATIONS)
    if rest:
        make = users_function(f"policy {name}", imported_policy(kind, rest), "the environment and a random generator")
        policy = make(env.inner, rng)
        if not callable(policy):
            raise UserError(f"--policy {name}: returned {policy!r}, expected a function from observation to action")
        return users_function(f"policy {name}", policy, OBSERVATIONS)
    raise UserError(f"--policy {name}: expected random, scripted, module:function or sac:agent.zip")


@cache
def trained_agent(algorithm: str, path: str) -> Any:
    require("stable_baselines3", extra="rl")
    import stable_baselines3

    try:
        return getattr(stable_baselines3, algorithm.upper()).load(path, device="cpu")
    except Exception as error:  # whatever the library makes of another file
        raise UserError(f"--policy {algorithm}:{path}: no such agent of stable-baselines3 ({error})") from error


def record(args: RecordArgs, number: int) -> None:
    """Write the file of an episode, if there is none."""
    path = args.file(number)
    if path.exists():
        return
    env, rng = open_environment(args), episode_rng(args.seed, args.env, number)
    seed = int(rng.integers(2**31))
    policy: Act | None = None

    def act(frames: list[np.ndarray]) -> np.ndarray:
        nonlocal policy
        if policy is None:  # made now, as scripted ones look at the state that the episode begins in
            policy = episode_policy(args, env, number, rng)
        return policy(frames)

    arrays = play_episode(env, act, seed, args.episode_length, may_end=True).arrays()
    if not env.reports_success:  # in no episode: nothing is known of it, which is not the same as never
        del arrays["success"]
    write_episode(path, arrays, args.compress)


def complete_successes(args: RecordArgs) -> None:
    """Let all episodes have successes if one has: the environment may report them only where one has happened."""
    files = [args.file(number) for number in range(args.num_episodes)]
    lacking = [file for file in files if "success" not in npz_members(str(file))]
    for file in lacking if len(lacking) < len(files) else ():
        arrays = {name: member.all() for name, member in npz_members(str(file)).items()}
        write_episode(file, arrays | {"success": np.zeros(len(arrays["action"]), bool)}, args.compress)


def main() -> None:
    args = parse(RecordArgs)
    env = open_environment(args)
    env.reset(seed=0)
    if args.policy != "random":
        find_policy(args.policy, env, np.random.default_rng(0))  # or say what is wrong, before the first file
    settings = {name: value for name, value in asdict(args).items() if name not in FREE_FLAGS}
    keep_settings(args.folder, settings, "recording.json")
    remove_abandoned(args.folder)
    numbers = range(args.num_episodes)
    with worker_pool(args.num_workers) as run, tqdm(total=args.num_episodes, unit="episode") as progress:
        for _ in run(partial(record, args), numbers):
            progress.update()
    complete_successes(args)
    print(f"{args.num_episodes} episodes are in {args.folder}")


if __name__ == "__main__":
    cli(main)
