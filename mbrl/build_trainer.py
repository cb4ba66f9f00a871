"""Build the parts of a run, and run it. Checks that are likely to fail come first, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ivideogpt.runs.resume import Changes
from ivideogpt.runs.trackers import TensorBoard
from mbrl.agent.drqv2 import build_agent
from mbrl.envs.agent_env import AgentEnv
from mbrl.envs.vector_env import make_vector_env
from mbrl.mbpo import Mbpo
from mbrl.metric_logger import MetricLogger, start_wandb
from mbrl.replay.demonstrations import ensure_demonstrations, load_demonstrations
from mbrl.replay.episodes import ReplayEpisode
from mbrl.replay.replay_buffer import EpisodeShape, ReplayBuffer, sample_mixed
from mbrl.replay.replay_files import ReplayFiles
from mbrl.replay.replay_memory import affordable_capacity, warn_if_too_much
from mbrl.run_folder import RunFolder
from mbrl.settings import MbpoSettings, Settings
from mbrl.snapshots import RandomNumbers, Snapshots, read_snapshot, valid_snapshot
from mbrl.trainer import Trainer

if TYPE_CHECKING:
    from mbrl.video_predictor import VideoPredictor


def train(settings: Settings, config: Mapping[str, Any], world_model: VideoPredictor | None = None) -> int:
    """Train DrQ-v2, or MBPO if the settings are its own, and return the exit code of the command.

    Args:
        config: what the settings were read from, as it is noted in the run's folder.
        world_model: in place of the one that MBPO's settings describe.

    Raises:
        UserError: something that was given does not fit, or the disk is full.
    """
    device = settings.torch_device
    folder = RunFolder(settings.run_dir)
    changes = folder.check(config)
    torch.manual_seed(settings.seed)
    rng, metric_logger = RandomNumbers(settings.seed), MetricLogger(folder)
    episode_steps = {"real": settings.duration}
    if isinstance(settings, MbpoSettings):
        from mbrl.build_video_predictor import build_video_predictor  # takes seconds to import

        world_model = world_model or build_video_predictor(
            settings.world_model, device, settings.seed, settings.env.image_size, settings.lpips_path
        )
        episode_steps["imagined"] = settings.gen_horizon
    with ExitStack() as stack:
        env = stack.enter_context(closing(settings.env.make()))
        num_envs = min(num_processors(), settings.num_eval_episodes)  # 130 MB each
        eval_envs = stack.enter_context(closing(make_vector_env(settings.env, num_envs, in_processes=num_envs > 1)))
        latest = valid_snapshot(folder)  # reads all of it: once
        buffers = _build_buffers(settings, latest, env, episode_steps)
        real, replay = buffers["real"], (settings.batch_size, settings.nstep, settings.discount, rng.replay)
        agent = build_agent(real.shape, settings.agent, settings.seed, device)
        mbpo, batches = None, partial(real.sample, *replay)
        if isinstance(settings, MbpoSettings) and world_model is not None:
            batches = partial(sample_mixed, real, buffers["imagined"], settings.real_ratio, *replay)
            mbpo = Mbpo(settings, world_model, agent, real, buffers["imagined"], rng.replay, metric_logger)
        trainer = Trainer(settings, env, eval_envs, agent, real, batches, rng, metric_logger, mbpo)
        parts = trainer.parts()
        files = {name: ReplayFiles(folder.replay(name), buffer) for name, buffer in buffers.items()}
        stack.enter_context(folder.locked())
        return _run(trainer, Snapshots(folder, parts, files, env), folder, latest, config, changes)


def num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _build_buffers(
    settings: Settings, latest: Path | None, env: AgentEnv, episode_steps: Mapping[str, int]
) -> dict[str, ReplayBuffer]:
    """Build a buffer for each kind of episode, given its number of steps.

    A resumed run keeps its capacity: its results depend on it.
    """
    _, height, width = env.observation_space.shape
    shape = EpisodeShape(settings.frame_stack, (height, width), *env.action_space.shape)
    lengths = list(episode_steps.values())
    if latest is None:
        capacity = affordable_capacity(settings.replay_buffer_size, shape, lengths)
    else:
        capacity = next(iter(read_snapshot(latest, mmap=True)["replay"].values()))["capacity"]
        warn_if_too_much(capacity, shape, lengths)
    pin_memory = settings.torch_device.type == "cuda"
    return {name: ReplayBuffer(capacity, shape, pin_memory) for name in episode_steps}


def _run(
    trainer: Trainer,
    snapshots: Snapshots,
    folder: RunFolder,
    latest: Path | None,
    config: Mapping[str, Any],
    changes: Changes,
) -> int:
    settings, trackers = trainer.settings, trainer.metric_logger.trackers
    demonstrations: list[ReplayEpisode] | None = None
    if latest is not None:
        snapshots.load(latest)
    else:
        demonstrations = []
        if settings.demo:
            ensure_demonstrations(settings.demo_path_prefix, settings.env)
            demonstrations = load_demonstrations(settings.demo_path_prefix, settings.env)
    frame = None if latest is None else int(latest.name)
    folder.note_settings(config, changes, frame or 0)  # now that they fit what was saved
    if settings.use_tb:
        trackers.append(TensorBoard(folder.path / "tensorboard", -1 if frame is None else frame))
    if settings.use_wandb:
        trackers.append(start_wandb(folder, settings.experiment, config, is_resumed=latest is not None))
    return trainer.run(snapshots, demonstrations)
