"""Checkpoints ("snapshots") of the whole state of a run with its replay buffers. The latest two are kept."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch

from ivideogpt.errors import UserError
from ivideogpt.files import atomic_file, write_json
from ivideogpt.runs.checkpoints import (
    SHARED_STATE,
    UNFINISHED,
    begin_checkpoint,
    finish_checkpoint,
    latest_undamaged,
    read_state,
    remove_checkpoint,
)
from ivideogpt.runs.state import Stateful, load_torch_random_state, torch_random_state
from ivideogpt.state_dicts import save_state
from mbrl.envs.agent_env import AgentEnv
from mbrl.replay.replay_files import Manifest, ReplayFiles
from mbrl.run_folder import RunFolder

logger = logging.getLogger(__name__)

PREFIX, STATE, ENVIRONMENT = "snapshots/", SHARED_STATE, "environment.npz"


class RandomNumbers:
    """State of all generators that are not the agent's or the world model's own.

    Attributes:
        replay: what is sampled from the buffers.
        acting: noise on the actions in the environment; on a CPU, so that it is the same whatever the device.
    """

    def __init__(self, seed: int) -> None:
        self.replay = np.random.default_rng(seed)
        self.acting = torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {
            "replay": json.dumps(self.replay.bit_generator.state),  # integers too long for a tensor
            "acting": self.acting.get_state(),
            **torch_random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.replay.bit_generator.state = json.loads(state["replay"])
        self.acting.set_state(state["acting"])
        load_torch_random_state(state)


def valid_snapshot(folder: RunFolder) -> Path | None:
    """Return the latest checkpoint, or the one before if it is damaged; UserError if all are, or they were removed."""
    path = latest_undamaged(folder.path, PREFIX)
    if path is None and folder.latest.exists():
        raise UserError(f"{folder.latest} names a snapshot that is not there: bring it back, or use another run_dir")
    return path


def saved_state(folder: RunFolder) -> dict[str, Any] | None:
    """Read the valid snapshot, if there is one, through a memory map: parts that are not used stay on the disk."""
    path = valid_snapshot(folder)
    return None if path is None else read_snapshot(path, mmap=True)


def read_snapshot(path: Path, mmap: bool = False) -> dict[str, Any]:
    return read_state(path / STATE, needed=("parts", "replay"), mmap=mmap)


class Snapshots:
    """
    Args:
        parts: what has a state, by name.
        replay: the buffers, by name.
        env: in the middle of an episode, perhaps.
    """

    def __init__(
        self, folder: RunFolder, parts: Mapping[str, Stateful], replay: Mapping[str, ReplayFiles], env: AgentEnv
    ) -> None:
        self._folder = folder
        self._parts, self._replay, self._env = parts, replay, env
        self._kept: dict[Path, Mapping[str, Manifest]] = {}  # snapshots of this process, newest last

    def save(self, frame: int, again: bool = False) -> None:
        """Write a checkpoint and keep the previous one. Does nothing if this frame's is there, unless ``again``.

        Raises:
            UserError: the disk is full or cannot be written to. What was saved before is as it was.
        """
        path = self._folder.snapshots / f"{frame:09d}"
        if path in self._kept and not again:
            return
        try:
            manifests = {name: files.write() for name, files in self._replay.items()}
            unfinished = begin_checkpoint(path)
            self._write(unfinished, manifests)
            finish_checkpoint(path, unfinished)
            write_json(self._folder.latest, {"snapshot": path.name})
        except OSError as error:
            shutil.rmtree(path.with_name(UNFINISHED + path.name), ignore_errors=True)
            reason = error.strerror or error
            raise UserError(
                f"cannot save the run in {path} ({reason}); what was saved before is unharmed: make room"
            ) from error
        before = [kept for kept in self._kept if kept != path][-1:]
        self._kept = {kept: self._kept[kept] for kept in before} | {path: manifests}
        for other in set(self._folder.snapshots.iterdir()) - self._kept.keys():
            remove_checkpoint(other)
        for name, files in self._replay.items():
            files.remove_unreferenced(*(manifests[name] for manifests in self._kept.values()))

    def _write(self, path: Path, manifests: Mapping[str, Manifest]) -> None:
        state = {
            "parts": {name: dict(part.state_dict()) for name, part in self._parts.items()},
            "replay": {name: asdict(manifest) for name, manifest in manifests.items()},
        }
        save_state(state, path / STATE)
        with atomic_file(path / ENVIRONMENT) as file:
            np.savez(file, **self._env.snapshot())  # type: ignore[arg-type]

    def load(self, path: Path) -> None:
        """Restore a checkpoint, which is the valid one; UserError if it is of another kind of run."""
        state = read_snapshot(path)
        with np.load(path / ENVIRONMENT, allow_pickle=False) as file:
            environment = dict(file)
        if missing := self._parts.keys() - state["parts"].keys():
            raise UserError(f"{path} lacks {', '.join(sorted(missing))}: it was saved by another kind of run")
        manifests = {name: Manifest.from_json(state["replay"][name]) for name in self._replay}
        for name, files in self._replay.items():
            files.load(manifests[name])
        for name, part in self._parts.items():
            try:
                part.load_state_dict(state["parts"][name])
            except (RuntimeError, KeyError) as error:  # tensors of another shape, or another network
                raise UserError(
                    f"{path}: the {name} that was saved does not fit these settings ({shorten(str(error), 160)}); go "
                    "on with those of the run, or use another run_dir"
                ) from error
        self._env.restore(environment)
        self._kept = {path: manifests}
        logger.info("going on from %s", path)
