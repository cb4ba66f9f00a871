"""The folder of a run: with which settings it was made, and where in it things are.

settings.json            as composed; the same command again goes on with it, others are refused
metrics.jsonl            all that was measured, with train.csv and eval.csv as its tables
success_rate.png         of the evaluations
videos/                  GIFs by kind and frame
snapshots/, latest.json  the state of the run, and which one is valid
replay/                  episodes, as the valid snapshot names them
tensorboard/             with use_tb
lock                     held by the process that is writing here
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivideogpt.errors import UserError
from ivideogpt.evaluation.output import check_folder_can_be_written
from ivideogpt.files import read_json, write_json
from ivideogpt.runs.locks import LOCK, locked

# How long, where and on what to train, and what to write. All other settings decide what is trained.
MAY_CHANGE = frozenset(
    {
        "num_train_frames", "device", "replay_buffer_num_workers", "run_dir", "experiment",
        "lpips_path", "save_snapshot", "save_video", "save_train_video", "use_tb", "use_wandb", "agent.use_tb",
        "agent.compile", "agent.device", "world_model.without_lpips",
    }
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def note(self) -> Path:
        return self.path / "settings.json"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def latest(self) -> Path:
        return self.path / "latest.json"

    @property
    def lock(self) -> Path:
        return self.path / LOCK

    def replay(self, name: str) -> Path:
        return self.path / "replay" / name

    def video(self, kind: str, name: str) -> Path:
        return self.path / "videos" / kind / f"{name}.gif"

    def check(self, settings: Mapping[str, Any]) -> None:
        """Writes nothing.

        Raises:
            UserError: the folder was made with other settings, cannot be written to, or is in use.
        """
        check_folder_can_be_written(self.path, "run_dir")
        if self.lock.exists():
            with self.locked():
                pass  # whoever has it would be disturbed later on, after all has been loaded
        if not self.note.exists():
            return
        before = flat(read_json(self.note, "use another run_dir"))
        now = flat(_as_read_back(settings))
        different = [
            f"{key} is {now.get(key)}, was {before.get(key)}"
            for key in sorted((before.keys() | now.keys()) - MAY_CHANGE)
            if before.get(key) != now.get(key)
        ]
        if different:
            raise UserError(
                f"{self.path} was made with other settings ({'; '.join(different)}): give them as they were, or "
                "another exp_name (a variant has its own) or run_dir"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder is this process's alone. The system lets go of it when the process ends, however it does.

        Raises:
            UserError: another process has it.
        """
        with ExitStack() as stack:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.path, "use another run_dir"))
            yield

    def note_settings(self, settings: Mapping[str, Any]) -> None:
        """Those that may change are noted as they are now."""
        with writing(self.note):
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.note, _as_read_back(settings))


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"agent.lr": ...}`` for ``{"agent": {"lr": ...}}``."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def _as_read_back(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk is the user's to solve."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): make room and start the same command again"
        ) from error
