"""The whole state of a run on disk. One file says which snapshot is valid; it is replaced in one step.

A run that is killed at any moment finds the snapshot before, whole. Read without unpickling anything but tensors.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ivideogpt.errors import UserError, first_line
from ivideogpt.files import atomic_file, read_json, sync_folder, write_json
from ivideogpt.runs.state import Stateful, load_torch_random_state, torch_random_state
from ivideogpt.state_dicts import save_state
from mbrl.envs.agent_env import AgentEnv
from mbrl.replay.replay_files import Manifest, ReplayFiles
from mbrl.run_folder import RunFolder

logger = logging.getLogger(__name__)

STATE, ENVIRONMENT = "state.pt", "environment.npz"


class RandomNumbers:
    """All generators that are not the agent's or the world model's own.

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
    """
    Raises:
        UserError: the file that names it is damaged.
    """
    file = folder.latest
    if not file.exists():
        return None
    name = read_json(file, "use another run_dir").get("snapshot")
    if not isinstance(name, str):
        raise UserError(f"{file} does not name a snapshot: use another run_dir")
    return folder.snapshots / name


def saved_capacity(folder: RunFolder) -> int | None:
    """Of the replay buffers in the valid snapshot, if there is one.

    Raises:
        UserError: it is incomplete or damaged.
    """
    return _saved(folder, lambda state: next(iter(state["replay"].values()))["capacity"])


def saved_part(folder: RunFolder, name: str) -> Any:
    """What one of the parts gave as its state to the valid snapshot, if there is one.

    Raises:
        UserError: it is incomplete or damaged.
    """
    return _saved(folder, lambda state: state["parts"][name])


def _saved(folder: RunFolder, pick: Callable[[dict[str, Any]], Any]) -> Any:
    """Through a memory map: what nobody looks at stays on the disk."""
    path = valid_snapshot(folder)
    if path is None:
        return None
    with _reading(path):
        return pick(torch.load(path / STATE, map_location="cpu", weights_only=True, mmap=True))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever torch and NumPy make of a damaged file
        raise UserError(f"{path} cannot be read ({first_line(error)}): use another run_dir to begin anew") from error


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

    @property
    def latest(self) -> Path | None:
        return valid_snapshot(self._folder)

    def save(self, frame: int) -> None:
        """Does nothing if this frame's is the valid one.

        Raises:
            UserError: the disk is full or cannot be written to. The snapshot before is as it was.
        """
        path = self._folder.snapshots / f"{frame:09d}"
        if path == self.latest:
            return
        manifests = {name: files.write() for name, files in self._replay.items()}
        try:
            self._write(path, manifests)
            write_json(self._folder.latest, {"snapshot": path.name})
        except OSError as error:
            if path != self.latest:
                shutil.rmtree(path, ignore_errors=True)
            reason = error.strerror or error
            raise UserError(
                f"cannot save the run in {path} ({reason}); what was saved before is unharmed: make room"
            ) from error
        self._forget_others(path, manifests)

    def _write(self, path: Path, manifests: Mapping[str, Manifest]) -> None:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        state = {
            "parts": {name: dict(part.state_dict()) for name, part in self._parts.items()},
            "replay": {name: manifest.to_json() for name, manifest in manifests.items()},
        }
        save_state(state, path / STATE)
        with atomic_file(path / ENVIRONMENT) as file:
            np.savez(file, **self._env.snapshot())  # type: ignore[arg-type]
        for folder in (path.parent, path.parent.parent):
            sync_folder(folder)

    def _forget_others(self, path: Path, manifests: Mapping[str, Manifest]) -> None:
        for other in set(self._folder.snapshots.iterdir()) - {path}:
            shutil.rmtree(other, ignore_errors=True)
        for name, files in self._replay.items():
            files.remove_unreferenced(manifests[name])

    def load(self) -> bool:
        """Bring back the valid snapshot. Whether there was one.

        Raises:
            UserError: it is incomplete or damaged, or of another kind of run.
        """
        path = self.latest
        if path is None:
            return False
        with _reading(path):
            state = torch.load(path / STATE, map_location="cpu", weights_only=True)
            with np.load(path / ENVIRONMENT, allow_pickle=False) as file:
                environment = dict(file)
        if missing := self._parts.keys() - state["parts"].keys():
            raise UserError(f"{path} lacks {', '.join(sorted(missing))}: it was saved by another kind of run")
        for name, files in self._replay.items():
            files.load(Manifest.from_json(state["replay"][name]))
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self._env.restore(environment)
        logger.info("going on from %s", path)
        return True
