"""Demonstrations on disk: read, recorded where there are none, and replayed as a check.

They are replay episodes in `<prefix>/<task-with-dashes>/*.npz`. Ours also hold the seed of the reset and some settings,
under the names of `EnvSettings`; published ones do not.
"""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.data.formats.npz_arrays import npz_members
from ivideogpt.errors import UserError
from mbrl.envs.env_settings import ACTION_DIM, EnvSettings, canonical_task, is_metaworld
from mbrl.replay.episodes import ReplayEpisode

logger = logging.getLogger(__name__)

RECORDER = Path("datasets", "record_metaworld.py")
RECORDER_FLAGS = {
    "image_size": "--image_size",
    "action_repeat": "--action_repeat",
    "camera": "--camera",
    "frame_stack": "--frame_stack",
    "duration": "--episode_length",
    "success_bonus": "--succ_bonus",
    "paper_reward": "--paper_reward",
}
# settings that files name
ORIGINS = ("task", "action_repeat", "camera", "duration", "success_bonus", "paper_reward")


@dataclass(frozen=True)
class Demonstration:
    """A demonstration and its origin."""

    episode: ReplayEpisode
    seed: int | None  # seed of the reset, if known
    origins: Mapping[str, Any]  # the known entries of ``ORIGINS``

    @classmethod
    def from_file(cls, path: Path) -> Demonstration:
        """Read a file; UserError if it is no replay episode of square frames, or holds NaN."""
        episode = ReplayEpisode.from_file(path)
        height, width = episode.frames.shape[2:]
        if height != width:
            raise UserError(f"{path}: frames of {height}x{width} pixels, expected square ones")
        notes = {name: _note(path, name) for name in (*ORIGINS, "seed") if name in npz_members(str(path))}
        seed = notes.pop("seed", None)
        return cls(episode, seed, notes)

    def arrays(self) -> dict[str, np.ndarray]:
        assert self.seed is not None
        origins = {name: np.array(value) for name, value in self.origins.items()}
        return {**self.episode.arrays(), "seed": np.array(self.seed), **origins}

    def settings(self, others: EnvSettings) -> EnvSettings:
        """Return the settings of its environment as far as they are known, and those of ``others`` elsewhere."""
        return replace(
            others, image_size=self.episode.frames.shape[-1], frame_stack=len(self.episode.earlier) + 1, **self.origins
        )


def _note(path: Path, name: str) -> Any:
    """Read one of the settings that a demonstration names, of the type that `EnvSettings` gives it; or its seed."""
    kind = int if name == "seed" else type(getattr(EnvSettings("reach"), name))
    try:
        value = npz_members(str(path))[name].all().item()
    except ValueError as error:
        raise UserError(f"{path}: {name} cannot be read ({error}); record it again") from error
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UserError(f"{path}: {name} is {value!r}, expected {kind.__name__}; record it again")
    return value


def load_demonstrations(prefix: Path, settings: EnvSettings) -> list[ReplayEpisode]:
    """Load a task's demonstrations by name, actions clipped to [-1, 1]: published ones reach 24.8.

    UserError if there are none, or one does not go with the settings.
    """
    settings = replace(settings, task=canonical_task(settings.task))
    folder = prefix / settings.task
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        if not is_metaworld(settings.task):
            raise UserError(f"no demonstrations (*.npz) of {settings.task} in {folder}: put some there")
        command = shlex.join(["python", *recording_command(prefix, settings)])
        raise UserError(f"no demonstrations (*.npz) of {settings.task} in {folder}; record some: {command}")
    episodes = [_fitting(path, settings) for path in paths]
    actions = np.concatenate([episode.action for episode in episodes])
    if num_beyond := np.count_nonzero(np.abs(actions) > 1):
        largest = np.abs(actions).max()
        logger.info(
            f"{folder}: {num_beyond} of {actions.size} values of actions clipped to [-1, 1], up to {largest:.3g}"
        )
    return [replace(episode, action=np.clip(episode.action, -1, 1)) for episode in episodes]


def _fitting(path: Path, settings: EnvSettings) -> ReplayEpisode:
    demonstration = Demonstration.from_file(path)
    num_actions = demonstration.episode.action.shape[1]
    if is_metaworld(settings.task) and num_actions != ACTION_DIM:
        raise UserError(f"{path}: actions have {num_actions} dimensions, those of Meta-World have {ACTION_DIM}")
    theirs = demonstration.settings(settings)
    for name in ("image_size", "frame_stack", *ORIGINS):
        has, wanted = getattr(theirs, name), getattr(settings, name)
        if has != wanted:
            raise UserError(
                f"{path} was recorded with {name} {has}, this run has {wanted}: change the run, or name another "
                "demo_path_prefix"
            )
    return demonstration.episode


def recording_command(prefix: Path, settings: EnvSettings, num: int = 5) -> list[str]:
    """Return python's arguments that record demonstrations for these settings."""
    flags: list[str] = []
    for name, flag in RECORDER_FLAGS.items():
        value = getattr(settings, name)
        if isinstance(value, bool) and value != getattr(EnvSettings, name):
            flags.append(flag if value else flag.replace("--", "--no-"))
        elif value != getattr(EnvSettings, name):
            flags += [flag, str(value)]
    return [
        *(str(RECORDER), "--tasks", canonical_task(settings.task), "--output_path", str(prefix)),
        *("--num_episodes", str(num), "--demo", "--compress", *flags),
    ]


def ensure_demonstrations(prefix: Path, settings: EnvSettings, num: int = 5) -> None:
    """Record demonstrations of the task if there are none, in some seconds; UserError if that fails.

    They appear together: neither an interruption nor another run that does the same leaves a part of them.
    """
    task = canonical_task(settings.task)
    folder = prefix / task
    if any(folder.glob("*.npz")) or not is_metaworld(task):
        return
    logger.info(f"no demonstrations of {task} in {folder} yet: recording {num}")
    try:
        prefix.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".recording-", dir=prefix) as unfinished:
            script, *arguments = recording_command(Path(unfinished), settings, num)
            command = [sys.executable, str(Path(__file__).resolve().parents[2] / script), *arguments]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                raise UserError(f"recording demonstrations failed: {reason.removeprefix('error: ')}")
            (Path(unfinished) / task).rename(folder)
    except UserError as error:
        by_hand = shlex.join(["python", *recording_command(prefix, settings, num)])
        raise UserError(f"{error}; by hand: {by_hand}") from error
    except OSError as error:
        if not any(folder.glob("*.npz")):  # nobody else was quicker
            raise UserError(f"cannot put demonstrations into {folder}: {error.strerror}") from error
