"""Train an agent in a world model, and try it in the real Meta-World task before and after.

The agent is SAC of stable-baselines3 on stacked frames. It never acts in the simulator while it learns. After Ctrl-C or
SIGTERM the same command goes on, with the agent, its optimizers and its memory as they were.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from any directory, installed or not

from ivideogpt.commands.export_env import EnvFlags
from ivideogpt.errors import UserError, cli, require
from ivideogpt.files import atomic_path, check_folder_can_be_written, check_settings, read_json, write_json
from ivideogpt.flags import REQUIRED, option, parse, redefine
from ivideogpt.paths import BUNDLED_MODEL
from ivideogpt.runs.signals import StopSignal

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv
    from stable_baselines3 import SAC

    from ivideogpt.envs.stable_baselines import StableBaselinesEnv

AGENT, MEMORY, RESULTS, SETTINGS = "agent.zip", "memory.pkl", "results.json", "settings.json"


@dataclass(frozen=True, kw_only=True)
class DreamArgs(EnvFlags):
    """Train an agent in a world model and evaluate it in Meta-World before and after."""

    pretrained_model_name_or_path: str = redefine(EnvFlags, "pretrained_model_name_or_path", str(BUNDLED_MODEL))
    task: str = option(REQUIRED, "task of Meta-World, such as plate-slide")
    output_path: str = option("outputs/dream", f"folder of {AGENT} and {RESULTS}")
    total_steps: int = option(4000, "steps in the world model, all rows together", minimum=1)
    num_envs: int = option(8, "rows of the world model", minimum=1)
    frame_stack: int = option(3, "frames that the agent sees", minimum=1)
    random_steps: int = option(400, "steps with random actions before the first update", minimum=0)
    gradient_steps: int = option(4, "updates of the agent after a step of all rows", minimum=1)
    batch_size: int = option(64, "transitions of an update", minimum=1)
    eval_episodes: int = option(10, "episodes in the simulator, before and after", minimum=1)
    eval_steps: int = option(100, "agent steps of such an episode", minimum=1)
    seed: int = option(0, "random seed", minimum=0, maximum=2**31)  # numpy takes 32 bits

    def validate(self) -> None:
        if self.total_steps <= self.random_steps:
            raise UserError(
                f"--total_steps {self.total_steps} end before the first update, after --random_steps "
                f"{self.random_steps}: nothing would be learned"
            )
        check_folder_can_be_written(Path(self.output_path), "--output_path")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(DreamArgs, argv)
    require("stable_baselines3", extra="rl")
    require("gymnasium", "metaworld", "mujoco", extra="mbrl")
    from mbrl.envs.env_settings import canonical_task
    from mbrl.envs.played_episode import check_actions

    task, results = canonical_task(args.task), read_results(args)
    agent = build_agent(args)
    simulator = build_simulator(args, task, agent.observation_space.shape[-1])
    try:
        check_actions(args.pretrained_model_name_or_path, agent.action_space.shape[0], simulator.single_action_space)
        if "before" not in results:
            results["before"] = evaluate(args, agent, simulator)
            write_results(args, results)
        if learn(args, agent):
            results["after"] = evaluate(args, agent, simulator)
            write_results(args, results)
            for when in ("before", "after"):
                success_rate, reward = results[when]["success_rate"], results[when]["reward"]
                print(f"{when}: success rate {success_rate:.2f}, reward {reward:.1f} an episode")
    finally:
        simulator.close()


def learn(args: DreamArgs, agent: SAC) -> bool:
    """Train the agent to the end and save it; False if a signal came before, after which it can go on."""
    stop = StopSignal()
    with stop.listening():
        left = args.total_steps - agent.num_timesteps
        agent.learn(left, callback=lambda *_: not stop.number, log_interval=4, reset_num_timesteps=False)
    folder = Path(args.output_path)
    is_complete = agent.num_timesteps >= args.total_steps
    if not is_complete:
        with atomic_path(folder / MEMORY) as partial:
            agent.save_replay_buffer(str(partial))
    with atomic_path(folder / AGENT) as partial, partial.open("wb") as file:
        agent.save(file)
    if is_complete:
        (folder / MEMORY).unlink(missing_ok=True)
    else:
        print(f"stopped after {agent.num_timesteps} of {args.total_steps} steps: the same command goes on")
    return is_complete


def read_results(args: DreamArgs) -> dict[str, Any]:
    """Return what the folder holds; UserError if it was made with other flags, or lacks what came before training."""
    path = Path(args.output_path) / RESULTS
    check_settings(path.with_name(SETTINGS), settings(args))
    results = read_json(path, "remove the folder to begin anew") if path.exists() else {}
    if "before" not in results and path.with_name(AGENT).exists():
        raise UserError(
            f"{path.with_name(AGENT)} has learned, and no scores from before are in {path}: remove the folder"
        )
    return results


def settings(args: DreamArgs) -> dict[str, Any]:
    return {name: value for name, value in asdict(args).items() if name != "output_path"}


def write_results(args: DreamArgs, results: dict[str, Any]) -> None:
    folder = Path(args.output_path)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, settings(args))
    write_json(folder / RESULTS, results)


def build_agent(args: DreamArgs) -> SAC:
    """Make the agent, or read the one that an earlier call has left."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.vec_env import VecMonitor

    from ivideogpt.envs.stable_baselines import PixelFeatures

    dream, folder = VecMonitor(build_dream(args)), Path(args.output_path)
    if (folder / AGENT).exists():
        agent = SAC.load(folder / AGENT, dream)
        agent.set_random_seed(args.seed + agent.num_timesteps)  # loading goes back to the numbers that it began with
        if (folder / MEMORY).exists():
            agent.load_replay_buffer(str(folder / MEMORY))
        return agent
    return SAC(
        "CnnPolicy",
        dream,
        buffer_size=args.total_steps,
        learning_starts=args.random_steps,
        gradient_steps=args.gradient_steps,
        batch_size=args.batch_size,
        ent_coef="auto_0.1",  # from 1 the bonus would outweigh what rewards differ by, for all of a short training
        policy_kwargs={"features_extractor_class": PixelFeatures},
        seed=args.seed,
        verbose=1,
    )


def build_dream(args: DreamArgs) -> StableBaselinesEnv:
    """Make the world model an environment of stable-baselines3.

    Episodes go on after a success, as Meta-World's do: its reward is paid at each step. Where success ended them,
    waiting in front of the goal would earn more.
    """
    from gymnasium.vector import AutoresetMode

    from ivideogpt.envs.stable_baselines import StableBaselinesEnv

    settings = dict(frame_stack=args.frame_stack, autoreset_mode=AutoresetMode.SAME_STEP, ignore_terminations=True)
    return StableBaselinesEnv(args.make_env(args.num_envs, "auto", "auto", **settings))


def build_simulator(args: DreamArgs, task: str, image_size: int) -> VectorEnv:
    from mbrl.envs.env_settings import EnvSettings
    from mbrl.envs.vector_env import make_vector_env

    settings = EnvSettings(task, image_size, frame_stack=args.frame_stack, duration=args.eval_steps, success_bonus=0)
    return make_vector_env(settings, 1, in_processes=False)


def evaluate(args: DreamArgs, agent: SAC, simulator: VectorEnv) -> dict[str, float]:
    """Play episodes in the simulator, the same ones each time: success rate and mean of the rewards' sums."""
    from mbrl.envs import vector_env
    from mbrl.envs.env_settings import episode_seed

    seeds = [episode_seed(args.seed, "eval", number) for number in range(args.eval_episodes)]
    results = vector_env.evaluate(
        simulator, lambda stacks: agent.predict(stacks, deterministic=True)[0].clip(-1, 1), seeds
    )  # the world model's bounds of actions may be wider
    return {
        "success_rate": sum(result.success for result in results) / len(results),
        "reward": sum(result.total_reward for result in results) / len(results),
    }


if __name__ == "__main__":
    cli(main)
