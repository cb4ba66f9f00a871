"""Folder of a run: its settings, and the paths of its parts.

run.json                 settings as composed; the same command again goes on with them, others are refused;
                         digests of the weights that it began with, and settings that were changed on purpose
metrics.jsonl            all that was measured, with train.csv and eval.csv as its tables
success_rate.png         of the evaluations
videos/                  GIFs by kind and frame
snapshots/, latest.json  the state of the run, and which one is valid
replay/                  episodes, as the valid snapshot names them
tensorboard/             with use_tb
lock                     held by the process that is writing here
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivideogpt.errors import UserError
from ivideogpt.files import check_folder_can_be_written, read_json, write_json
from ivideogpt.runs.locks import check_not_locked, locked
from ivideogpt.runs.resume import RECORD, Changes, ResumeRules, refuse

ADVICE = "use another run_dir"
# What the saved state was made with or has been through. resume_with_changes=true changes none of it.
FIXED = frozenset(
    {
        "task_name", "camera", "frame_stack", "action_repeat", "duration", "demo", "replay_buffer_size", "start_mbpo",
        "feature_dim", "agent.feature_dim", "agent.hidden_dim",
    }
)  # fmt: skip
RULES = ResumeRules(
    may_change=frozenset(
        {
            "num_train_frames", "device", "replay_buffer_num_workers", "run_dir", "experiment", "resume_with_changes",
            "lpips_path", "save_snapshot", "save_video", "save_train_video", "use_tb", "use_wandb", "agent.use_tb",
            "agent.compile", "agent.device", "world_model.without_lpips",
        }
    ),
    data=(),
    weights=(
        "world_model.pretrained_model_name_or_path", "world_model.pretrained_transformer_path",
        "world_model.config_name",
    ),
    allow="resume_with_changes=true",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def record(self) -> Path:
        return self.path / RECORD

    def settings(self) -> dict[str, Any]:
        """Return the settings as last noted; UserError if this is no folder of a run."""
        settings = read_json(self.record, "name the folder of a run").get("settings")
        if not isinstance(settings, dict):
            raise UserError(f"{self.record} holds no settings: name the folder of a run")
        return settings

    def _noted(self) -> dict[str, Any]:
        return read_json(self.record, ADVICE) if self.record.exists() else {}

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def latest(self) -> Path:
        return self.path / "latest.json"

    def replay(self, name: str) -> Path:
        return self.path / "replay" / name

    def video(self, kind: str, name: str) -> Path:
        return self.path / "videos" / kind / f"{name}.gif"

    def check(self, settings: Mapping[str, Any]) -> Changes:
        """Return the settings that are changed on purpose. Writes nothing.

        Raises:
            UserError: the folder was made with other settings, cannot be written to, or is in use; or the run was
                saved, and is not to be saved any more.
        """
        check_folder_can_be_written(self.path, "run_dir")
        with writing(self.path):
            check_not_locked(self.path, ADVICE)
        record = self._noted()
        if "settings" not in record:
            return {}
        before, now = flat(record["settings"]), flat(settings)
        names = sorted(before.keys() | now.keys())
        changes = RULES.changes(
            {name: now.get(name) for name in names}, {name: before.get(name) for name in names}, record.get("contents")
        )
        otherwise = f"use another exp_name (a variant has its own) or run_dir than {self.path}"
        if not now.get("resume_with_changes"):
            refuse(changes, RULES.allow, lambda name, before, now: f"{name} is {now}, was {before}", otherwise)
        is_saved = self.latest.exists()
        if is_saved and (kept := sorted(changes.keys() & FIXED)):
            given = ", ".join(f"{name} is {now.get(name)}, was {before.get(name)}" for name in kept)
            raise UserError(f"a saved run keeps these whatever else may change: {given}; {otherwise}")
        if is_saved and now.get("save_snapshot") is False:
            raise UserError(
                f"save_snapshot is false, and {self.path} has snapshots: what the run adds would be cut off when it "
                f"goes on; leave it out, or {ADVICE}"
            )
        return changes

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process, until it ends in any way; UserError if another process has it."""
        with ExitStack() as stack:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.path, ADVICE))
            yield

    def note_settings(self, settings: Mapping[str, Any], changes: Changes, frame: int) -> None:
        """Write the present settings, and once the digests of the weights that they name."""
        with writing(self.record):
            self.path.mkdir(parents=True, exist_ok=True)
            record = self._noted() or {"contents": RULES.digests(flat(settings))}
            write_json(self.record, {**record, "settings": settings})
            if changes:
                RULES.note(self.record, changes, frame, flat(settings))


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten ``{"agent": {"lr": ...}}`` to ``{"agent.lr": ...}``."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of a full disk into UserErrors."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): make room and start the same command again"
        ) from error
