"""Build the parts of a run, and run it. Checks that are likely to fail come first, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import torch

from ivideogpt.runs.resume import Changes
from ivideogpt.runs.state import Stateful
from ivideogpt.runs.trackers import TensorBoard
from mbrl.agent.drqv2 import build_agent
from mbrl.envs.agent_env import AgentEnv
from mbrl.envs.vector_env import VectorEnv, make_vector_env
from mbrl.mbpo import Mbpo, WorldModelInTheLoop
from mbrl.metric_logger import MetricLogger, start_wandb
from mbrl.replay.demonstrations import ensure_demonstrations, load_demonstrations
from mbrl.replay.episodes import ReplayEpisode
from mbrl.replay.replay_buffer import EpisodeShape, ReplayBuffer, sample_mixed
from mbrl.replay.replay_files import ReplayFiles
from mbrl.replay.replay_memory import affordable_capacity, warn_if_too_much
from mbrl.run_folder import RunFolder
from mbrl.schedule import MbpoSchedule, Schedule
from mbrl.settings import MbpoSettings, Settings
from mbrl.snapshots import RandomNumbers, Snapshots, saved_capacity
from mbrl.trainer import Trainer


def train_drq(settings: Settings, config: Mapping[str, Any]) -> int:
    """
    Args:
        config: what the settings were read from, as it is noted in the run's folder.

    Returns:
        The exit code of the command.

    Raises:
        UserError: something that was given does not fit, or the disk is full.
    """
    device = settings.torch_device
    folder = RunFolder(settings.run_dir)
    changes = folder.check(config)
    torch.manual_seed(settings.seed)
    rng = RandomNumbers(settings.seed)
    with ExitStack() as stack:
        env, eval_envs = _open_environments(settings, stack)
        (real,) = _build_buffers(settings, folder, env, [settings.duration])
        batches = partial(real.sample, settings.batch_size, settings.nstep, settings.discount, rng.replay)
        agent = build_agent(real.shape, settings.agent, settings.seed, device)
        metric_logger = MetricLogger(folder)
        trainer = Trainer(Schedule(settings), env, eval_envs, agent, real, batches, rng, metric_logger)
        snapshots = Snapshots(folder, trainer.parts(), _files(folder, real=real), env)
        return _run(trainer, snapshots, folder, config, changes)


def train_mbpo(
    settings: MbpoSettings, config: Mapping[str, Any], build_world_model: Callable[[], WorldModelInTheLoop]
) -> int:
    """Train as :func:`train_drq` does, with a world model in the loop."""
    device = settings.torch_device
    folder = RunFolder(settings.run_dir)
    changes = folder.check(config)
    torch.manual_seed(settings.seed)
    world_model = build_world_model()
    rng, schedule = RandomNumbers(settings.seed), MbpoSchedule(settings)
    with ExitStack() as stack:
        env, eval_envs = _open_environments(settings, stack)
        real, imagined = _build_buffers(settings, folder, env, [settings.duration, settings.gen_horizon])
        batches = partial(
            sample_mixed, real, imagined, settings.real_ratio,
            settings.batch_size, settings.nstep, settings.discount, rng.replay,
        )  # fmt: skip
        agent = build_agent(real.shape, settings.agent, settings.seed, device)
        metric_logger = MetricLogger(folder)
        mbpo = Mbpo(schedule, world_model, agent, real, imagined, rng.replay, metric_logger)
        trainer = Trainer(schedule, env, eval_envs, agent, real, batches, rng, metric_logger, mbpo)
        parts: dict[str, Stateful] = {**trainer.parts(), "world_model": world_model, "dreaming": mbpo}
        snapshots = Snapshots(folder, parts, _files(folder, real=real, imagined=imagined), env)
        return _run(trainer, snapshots, folder, config, changes)


def _build_buffers(
    settings: Settings, folder: RunFolder, env: AgentEnv, episode_steps: list[int]
) -> list[ReplayBuffer]:
    """Build a buffer for each kind of episode. A resumed run keeps its capacity: its results depend on it."""
    _, height, width = env.observation_space.shape
    shape = EpisodeShape(settings.frame_stack, (height, width), *env.action_space.shape)
    capacity = saved_capacity(folder)
    if capacity is None:
        capacity = affordable_capacity(settings.replay_buffer_size, shape, episode_steps)
    else:
        warn_if_too_much(capacity, shape, episode_steps)
    pin_memory = settings.torch_device.type == "cuda"
    return [ReplayBuffer(capacity, shape, pin_memory) for _ in episode_steps]


def _open_environments(settings: Settings, stack: ExitStack) -> tuple[AgentEnv, VectorEnv]:
    """Open the training environment and those for evaluation: as many as there are processors, 130 MB each."""
    env = stack.enter_context(closing(settings.env.make()))
    num_envs = min(num_processors(), settings.num_eval_episodes)
    return env, stack.enter_context(closing(make_vector_env(settings.env, num_envs, in_processes=num_envs > 1)))


def num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _files(folder: RunFolder, **buffers: ReplayBuffer) -> dict[str, ReplayFiles]:
    return {name: ReplayFiles(folder.replay(name), buffer) for name, buffer in buffers.items()}


def _run(trainer: Trainer, snapshots: Snapshots, folder: RunFolder, config: Mapping[str, Any], changes: Changes) -> int:
    with folder.locked():
        return _run_alone(trainer, snapshots, folder, config, changes)


def _run_alone(
    trainer: Trainer, snapshots: Snapshots, folder: RunFolder, config: Mapping[str, Any], changes: Changes
) -> int:
    settings, latest = trainer.settings, snapshots.latest
    demonstrations = _demonstrations(settings) if settings.demo and latest is None else []
    folder.note_settings(config, changes, int(latest.name) if latest else 0)
    if settings.use_tb:
        trainer.metric_logger.track_with(TensorBoard(folder.path / "tensorboard", int(latest.name) if latest else -1))
    if settings.use_wandb:
        trainer.metric_logger.track_with(start_wandb(folder, settings.experiment, config, latest is not None))
    return trainer.run(snapshots, demonstrations)


def _demonstrations(settings: Settings) -> list[ReplayEpisode]:
    ensure_demonstrations(settings.demo_path_prefix, settings.env)
    return load_demonstrations(settings.demo_path_prefix, settings.env)
