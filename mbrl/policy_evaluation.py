"""Play policies in a simulator and in a world model.

Shapes: E episodes, M frames of a start, K frames in a stack, T steps, D action dimension, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ivideogpt.commands.evaluate_policies import PolicyArgs
from ivideogpt.devices import choose_device
from ivideogpt.envs.imagination import Imagination
from ivideogpt.errors import UserError
from ivideogpt.evaluation.policy_report import EpisodeRow, PolicyRows, read_rows, write_report
from ivideogpt.evaluation.prediction_report import model_facts
from ivideogpt.files import file_stem
from ivideogpt.precision import precision
from ivideogpt.session import UnsoundModel, are_finite
from ivideogpt.video_io import Pixels, side_by_side, write_gif
from ivideogpt.world_model import WorldModel
from mbrl.envs.agent_env import AgentEnv
from mbrl.envs.collection_policies import (
    CorrelatedNoise,
    NoisyPolicy,
    RandomReacher,
    imported_policy,
    scripted_policy,
)
from mbrl.envs.env_settings import EnvSettings, canonical_task, episode_rng, episode_seed, is_metaworld
from mbrl.envs.played_episode import check_actions, play_episode
from mbrl.envs.users_code import users_function

ActOnFrames = Callable[[Tensor], Tensor]  # stacks (n, 3 K, H, W) uint8 -> actions (n, D)
ActOnState = Callable[[np.ndarray], np.ndarray]  # the simulator's observation -> action (D,)
NOT_REPORTED = ("policies", "output_path", "device", "batch_size", "pretrained_model_name_or_path")


@dataclass(frozen=True)
class Policy:
    """Acts on frames, or on the simulator's state by a function that is made anew for each episode."""

    name: str
    on_frames: ActOnFrames | None = None
    on_state: Callable[[AgentEnv, np.random.Generator], ActOnState] | None = None


@dataclass(frozen=True)
class Episode:
    """An episode, real or imagined: frames (T, H, W, 3) uint8."""

    frames: Pixels
    total_reward: float
    success: bool


@dataclass(frozen=True)
class RealEpisode(Episode):
    """An episode in the simulator: start (M, 3, H, W) uint8, actions (T, D)."""

    start: Pixels
    actions: np.ndarray


def run(args: PolicyArgs) -> None:
    model, task = load_model(args), canonical_task(args.task)
    policies = [find_policy(name, task, args, model) for name in args.policies]
    asked = {name: value for name, value in asdict(args).items() if name not in NOT_REPORTED}
    facts = {name: value for name, value in model_facts(model).items() if name.endswith("_checksum")}
    name = Path(args.pretrained_model_name_or_path).name
    rows = read_rows(Path(args.output_path), {"model": name, **asked, "task": task, **facts})
    played = {row.policy for row in rows.rows}
    check_names(played | {policy.name for policy in policies})
    needed = max(args.frame_stack, model.tokenizer.context_length)
    settings = EnvSettings(
        task, model.metadata.resolution, args.action_repeat, args.camera, frame_stack=needed,
        duration=args.episode_length + 1, success_bonus=0.0,
    )  # fmt: skip
    with closing(settings.make()) as env:
        check_actions(args.pretrained_model_name_or_path, model.action_dim, env.action_space)
        for policy in policies:
            if policy.name in played:
                print(f"{policy.name} is not played again: its episodes are in {rows.path}")
            else:
                play_policy(args, model, env, policy, rows)
    videos = [file_stem(policy) for policy in dict.fromkeys(row.policy for row in rows.rows)]
    print(write_report(rows, videos).split("## Where")[0])
    print(f"report: {rows.folder / 'report.md'}")


def load_model(args: PolicyArgs) -> WorldModel:
    dtype = precision(args.dtype)
    path, device = args.pretrained_model_name_or_path, choose_device(args.device)
    model = WorldModel.from_pretrained(path, device, dtype, action_space=args.action_space)
    missing = [name for name, head in (("reward", model.reward_head), ("success", model.success_head)) if head is None]
    if model.action_dim is None or missing:
        lack = "takes no actions" if model.action_dim is None else f"has no {' and no '.join(missing)} head"
        raise UserError(
            f"{args.pretrained_model_name_or_path} {lack}: train one with --action_conditioned --reward_prediction "
            "--success_prediction"
        )
    return model


def check_names(policies: Iterable[str]) -> None:
    """Raise UserError if the videos of two policies would have the same name."""
    for one, other in combinations(sorted(policies), 2):
        if file_stem(one) == file_stem(other):
            raise UserError(f"policies {one} and {other} have the same file name, {file_stem(one)}: rename one")


def find_policy(name: str, task: str, args: PolicyArgs, model: WorldModel) -> Policy:
    """Return the policy that a word of the command line names; UserError if there is none."""
    kind, _, rest = name.partition(":")
    if kind in ("scripted", "random") and not is_metaworld(task):
        raise UserError(f"{name} is a policy for Meta-World's tasks: name functions for {task}")
    if kind == "scripted":
        level = _noise_level(name, rest)
        return Policy(
            name, on_state=lambda _, rng: NoisyPolicy(scripted_policy(task), CorrelatedNoise(level, False, rng))
        )
    if name == "random":
        return Policy(name, on_state=lambda env, rng: RandomReacher(env.env.workspace, rng))
    if rest:
        assert model.action_dim is not None
        return Policy(name, on_frames=checked_policy(name, imported_policy(kind, rest), model.action_dim))
    if Path(name).is_dir():
        return _agent_of_a_run(Path(name), task, args, model)
    raise UserError(f"no policy {name!r}: expected scripted[:noise], random, a folder of a run, or module:function")


def checked_policy(name: str, function: Callable[[Tensor], Any], action_dim: int) -> ActOnFrames:
    """Return a user's function whose result is checked: finite floats (n, D), as a tensor or what becomes one."""
    call = users_function(f"policy {name}", function, "stacked frames (n, 3 K, H, W) uint8")

    def act(stacks: Tensor) -> Tensor:
        found, expected = call(stacks), f"expected finite floats ({len(stacks)}, {action_dim})"
        try:
            actions = torch.as_tensor(found, device=stacks.device).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"policy {name} returned {shortened(found)}, {expected}") from error
        if actions.shape != (len(stacks), action_dim) or not actions.is_floating_point():
            raise UserError(f"policy {name} returned {actions.dtype} of shape {tuple(actions.shape)}, {expected}")
        if not actions.isfinite().all():
            raise UserError(f"policy {name} returned numbers that are not finite, {expected}")
        return actions.float()

    return act


def _agent_of_a_run(folder: Path, task: str, args: PolicyArgs, model: WorldModel) -> Policy:
    """Return the agent of a run's folder; UserError if it has learned in another environment than the flags name."""
    from mbrl.agent.saved_agent import trained_agent

    assert model.action_dim is not None
    agent = trained_agent(folder, model.metadata.resolution, model.action_dim, model.device, args.frame_stack)
    learned = {"task": canonical_task(agent.settings["task_name"])}
    learned |= {flag: agent.settings[flag] for flag in ("camera", "action_repeat")}
    asked = {"task": task, "camera": args.camera, "action_repeat": args.action_repeat}
    if differing := [flag for flag, value in learned.items() if value != asked[flag]]:
        told = ", ".join(f"--{flag} {learned[flag]}, not {asked[flag]}" for flag in differing)
        raise UserError(f"{folder}: its agent has learned with {told}: give the flags that it has learned with")
    return Policy(f"{folder} (frame {agent.frame})", on_frames=agent.act)  # it may go on learning


def _noise_level(name: str, text: str) -> float:
    try:
        level = float(text or 0)
    except ValueError:
        level = -1.0
    if not 0 <= level < float("inf"):
        raise UserError(f"policy {name}: what follows the colon is a standard deviation, 0 or more")
    return level


# ---- episodes


def play_policy(args: PolicyArgs, model: WorldModel, env: AgentEnv, policy: Policy, rows: PolicyRows) -> None:
    """Play all episodes of a policy, add their rows, and write the video of the one that differs most."""
    numbers = range(args.episodes)
    real = [play_real(args, env, policy, number) for number in tqdm(numbers, f"{policy.name}, real", unit="episode")]
    imagined = [
        episode
        for first in tqdm(numbers[:: args.batch_size], f"{policy.name}, imagined", unit="batch")
        for episode in imagine(args, model, policy, real[first : first + args.batch_size], first)
    ]
    pairs, sees_frames = list(zip(real, imagined, strict=True)), policy.on_frames is not None
    one, two = max(pairs, key=lambda pair: abs(pair[0].total_reward - pair[1].total_reward))
    write_gif(rows.folder / f"{file_stem(policy.name)}.gif", side_by_side([one.frames, two.frames]), fps=10)
    rows.add(
        [
            EpisodeRow(policy.name, number, sees_frames, one.total_reward, two.total_reward, one.success, two.success)
            for number, (one, two) in enumerate(pairs)
        ]
    )


def play_real(args: PolicyArgs, env: AgentEnv, policy: Policy, number: int) -> RealEpisode:
    """Play an episode in the simulator. A first step without movement gives the world model a second frame."""
    rng = episode_rng(args.seed, f"policy {policy.name}", number)
    on_state = policy.on_state(env, rng) if policy.on_state is not None else None

    def act(stacks: list[Pixels]) -> np.ndarray:
        if len(stacks) == 1:
            return np.zeros(env.action_space.shape)
        if on_state is not None:
            return on_state(env.env.state)
        assert policy.on_frames is not None
        return policy.on_frames(torch.from_numpy(stacks[-1][None, -3 * args.frame_stack :]))[0].cpu().numpy()

    episode = play_episode(env, act, episode_seed(args.seed, "policies", number), args.episode_length + 1)
    start, frames = episode.observations[1], episode.observations[2:, -3:]
    return RealEpisode(
        frames.transpose(0, 2, 3, 1), float(sum(episode.rewards[1:])), bool(episode.successes[1:].any()),
        start.reshape(-1, 3, *start.shape[1:]), episode.actions[1:],
    )  # fmt: skip


@torch.no_grad()
def imagine(
    args: PolicyArgs, model: WorldModel, policy: Policy, real: Sequence[RealEpisode], first: int
) -> list[Episode]:
    """Play the same starts in the world model: by the policy if it acts on frames, else with the real actions."""
    starts = torch.from_numpy(np.stack([episode.start for episode in real]))
    numbers = range(first, first + len(real))
    imagination = Imagination(model, starts, args.frame_stack, seed=args.seed, row_numbers=numbers)
    recorded = torch.from_numpy(np.stack([episode.actions for episode in real]))
    is_sound = torch.ones((), dtype=torch.bool, device=model.device)
    frames, rewards = [], torch.zeros(len(real), device=model.device)
    succeeded = torch.zeros(len(real), dtype=torch.bool, device=model.device)
    for step_actions in recorded.unbind(1):
        if policy.on_frames is not None:
            step_actions = policy.on_frames(imagination.stacks.flatten(1, 2)).clamp(-1, 1)
        step = imagination.step(step_actions)
        assert step.reward is not None
        assert step.success is not None
        frames.append(imagination.stacks[:, -1].permute(0, 2, 3, 1).cpu().numpy())
        is_sound &= are_finite(step.frames, step.reward, step.success)
        rewards += step.reward
        succeeded |= step.success >= args.success_threshold
    if not is_sound:
        raise UnsoundModel
    parts = np.stack(frames, axis=1), rewards.tolist(), succeeded.tolist()
    return [Episode(*episode) for episode in zip(*parts, strict=True)]
