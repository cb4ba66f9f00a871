"""Train an agent in a world model, and try it in the real Meta-World task before and after.

The agent is SAC of stable-baselines3 on stacked frames. It never acts in the simulator while it learns.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from any directory, installed or not

from ivideogpt.errors import cli, require
from ivideogpt.files import check_folder_can_be_written, write_json
from ivideogpt.flags import REQUIRED, option, parse

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv
    from stable_baselines3 import SAC

    from ivideogpt.envs.stable_baselines import StableBaselinesEnv

BUNDLED_MODEL = "pretrained_models/ivideogpt-metaworld-64-tiny"


@dataclass(frozen=True, kw_only=True)
class DreamArgs:
    """Train an agent in a world model and evaluate it in Meta-World before and after."""

    pretrained_model_name_or_path: str = option(BUNDLED_MODEL, "folder or hub id of a world model")
    dataset_path: str = option(REQUIRED, "episodes of the task that dreams begin in: a folder, or lerobot:<folder>")
    task: str = option(REQUIRED, "task of Meta-World, such as plate-slide")
    functions: str | None = option(
        None, "Python file with reward(frames) or success(frames) or both, in place of the model's heads"
    )
    output_path: str = option("outputs/dream", "folder of agent.zip and results.json")
    total_steps: int = option(4000, "steps in the world model, all rows together", minimum=1)
    num_envs: int = option(8, "rows of the world model", minimum=1)
    horizon: int | None = option(None, "steps of a dream (default: the frames the model was trained on)", minimum=1)
    frame_stack: int = option(3, "frames that the agent sees", minimum=1)
    random_steps: int = option(400, "steps with random actions before the first update", minimum=0)
    gradient_steps: int = option(2, "updates of the agent after a step of all rows", minimum=1)
    batch_size: int = option(64, "transitions of an update", minimum=1)
    eval_episodes: int = option(10, "episodes in the simulator, before and after", minimum=1)
    eval_steps: int = option(100, "agent steps of such an episode", minimum=1)
    seed: int = option(0, "random seed", minimum=0)

    def validate(self) -> None:
        check_folder_can_be_written(Path(self.output_path), "--output_path")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(DreamArgs, argv)
    require("stable_baselines3", extra="rl")
    require("gymnasium", "metaworld", "mujoco", extra="mbrl")
    from mbrl.envs.env_settings import canonical_task
    from mbrl.envs.played_episode import check_actions

    task, agent = canonical_task(args.task), build_agent(args)
    simulator = build_simulator(args, task, agent.observation_space.shape[-1])
    try:
        check_actions(args.pretrained_model_name_or_path, agent.action_space.shape[0], simulator.single_action_space)
        before = evaluate(args, agent, simulator)
        agent.learn(args.total_steps, log_interval=4)
        results = {"before": before, "after": evaluate(args, agent, simulator)}
    finally:
        simulator.close()
    for when, result in results.items():
        print(f"{when}: success rate {result['success_rate']:.2f}, reward {result['reward']:.1f} an episode")
    folder = Path(args.output_path)
    folder.mkdir(parents=True, exist_ok=True)
    agent.save(folder / "agent.zip")
    write_json(folder / "results.json", results)


def build_agent(args: DreamArgs) -> SAC:
    from stable_baselines3 import SAC
    from stable_baselines3.common.vec_env import VecMonitor

    return SAC(
        "CnnPolicy",
        VecMonitor(build_dream(args)),
        buffer_size=args.total_steps,
        learning_starts=args.random_steps,
        gradient_steps=args.gradient_steps,
        batch_size=args.batch_size,
        seed=args.seed,
        verbose=1,
    )


def build_dream(args: DreamArgs) -> StableBaselinesEnv:
    """Make the world model an environment of stable-baselines3."""
    from gymnasium.vector import AutoresetMode

    from ivideogpt.envs.hub import read_functions
    from ivideogpt.envs.registration import make_vector_env
    from ivideogpt.envs.stable_baselines import StableBaselinesEnv

    functions: dict[str, Any] = {} if args.functions is None else dict(read_functions(Path(args.functions)))
    return StableBaselinesEnv(
        make_vector_env(
            args.pretrained_model_name_or_path,
            args.dataset_path,
            args.num_envs,
            horizon=args.horizon,
            frame_stack=args.frame_stack,
            autoreset_mode=AutoresetMode.SAME_STEP,
            **functions,
        )
    )


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
    results = vector_env.evaluate(simulator, lambda stacks: agent.predict(stacks, deterministic=True)[0], seeds)
    return {
        "success_rate": sum(result.success for result in results) / len(results),
        "reward": sum(result.total_reward for result in results) / len(results),
    }


if __name__ == "__main__":
    cli(main)
