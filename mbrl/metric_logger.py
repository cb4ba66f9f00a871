"""Metric lines, tables, curve and videos of a run. Part of a checkpoint: a resumed run cuts them back to it."""

from __future__ import annotations

import csv
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.errors import UserError
from ivideogpt.files import atomic_file, write_text
from ivideogpt.runs.metrics_file import METRICS, append_metrics, finite_or_none
from ivideogpt.runs.trackers import Tracker, WeightsAndBiases
from ivideogpt.video_io import write_gif
from mbrl.replay.episodes import Floats, Pixels
from mbrl.run_folder import RunFolder, writing

logger = logging.getLogger(__name__)

TABLES = {
    "train": (
        "frame", "step", "episode", "episode_reward", "success", "hours", "frames_per_s", "critic_loss",
        "critic_value", "target_value", "batch_reward", "actor_loss",
    ),
    "eval": ("frame", "step", "episode", "episode_reward", "success_rate", "num_episodes", "hours"),
}  # fmt: skip
CURVE = "success_rate.png"
VIDEO_FPS = 20.0
BAR = 6  # pixels


def start_wandb(folder: RunFolder, group: str, config: Mapping[str, Any], is_resumed: bool) -> WeightsAndBiases:
    """One run of theirs for one of ours: its id stays in the folder.

    Raises:
        UserError: it cannot be reached, or nobody is logged in.
    """
    note = folder.path / "wandb_id"
    if not (is_resumed and note.exists()):
        with writing(note):
            write_text(note, secrets.token_hex(4))
    run_id = note.read_text().strip()
    if not run_id:
        raise UserError(f"{note} is empty: remove it, and the run goes on as a new one of Weights & Biases")
    name = f"{folder.path.parent.name}/{folder.path.name}"
    return WeightsAndBiases(
        "use_wandb=true", axis="frame", project="ivideogpt-mbrl", name=name, group=group, id=run_id, resume="allow",
        dir=folder.path, config=dict(config),
    )  # fmt: skip


class MetricLogger:
    """Writes into a run's folder, and to the trackers that are added."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._trackers: list[Tracker] = []

    def track_with(self, tracker: Tracker) -> None:
        self._trackers.append(tracker)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()

    def write(self, split: str, frame: int, metrics: Mapping[str, float]) -> None:
        """Append a line, and a row if there is a table of this kind; non-finite values become null.

        Raises:
            UserError: the disk is full.
        """
        finite = finite_or_none(metrics)
        with writing(self._folder.path / METRICS):
            append_metrics(self._folder.path / METRICS, {"split": split, "frame": frame}, metrics)
        if split in TABLES:
            self._write_row(split, {"frame": frame, **finite})
        tracked = {f"{split}/{name}": value for name, value in finite.items() if value is not None}
        for tracker in self._trackers:
            tracker.log(tracked, frame)

    def _write_row(self, split: str, row: Mapping[str, Any]) -> None:
        path = self._folder.path / f"{split}.csv"
        with writing(path), path.open("a", newline="") as file:
            table = csv.DictWriter(file, TABLES[split], extrasaction="ignore")
            if file.tell() == 0:
                table.writeheader()
            table.writerow(row)

    def write_video(self, kind: str, name: str, video: Pixels) -> None:
        """Write a video (T, H, W, 3)."""
        path = self._folder.video(kind, name)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_gif(path, video, VIDEO_FPS)

    def plot_success(self) -> None:
        """Plot the success rates of all evaluations so far."""
        from matplotlib.figure import Figure

        with (self._folder.path / "eval.csv").open(newline="") as file:
            points = [(int(row["frame"]), float(row["success_rate"])) for row in csv.DictReader(file)]
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        panel = figure.subplots()
        panel.plot(*zip(*points), marker="o", markersize=3)
        panel.set(xlabel="frames", ylabel="success rate", ylim=(-0.03, 1.03), title=self._folder.path.name)
        panel.grid(alpha=0.3)
        with writing(self._folder.path / CURVE), atomic_file(self._folder.path / CURVE) as file:
            figure.savefig(file, format="png", dpi=110)

    def set_aside_unsaved(self) -> None:
        """Move away the records of a run that was never saved and so cannot be continued."""
        for path in self._files():
            if path.exists():
                logger.warning("no snapshot in %s: beginning anew; %s is kept as %s.old", path.parent, path, path.name)
                with writing(path):
                    os.replace(path, path.with_name(path.name + ".old"))

    def state_dict(self) -> dict[str, int]:
        """Return the sizes of the files, whose contents are on the disk by then."""
        sizes = {}
        for path in self._files():
            if path.exists():
                with writing(path), path.open("ab") as file:
                    os.fsync(file.fileno())
                    sizes[path.name] = file.tell()
        return sizes

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Cut the files back to the saved sizes."""
        for path in self._files():
            if not path.exists():
                continue
            size = state.get(path.name, 0)
            if path.stat().st_size < size:
                logger.warning("%s is shorter than it was when the run was saved: left as it is", path)
            else:
                os.truncate(path, size)

    def _files(self) -> list[Path]:
        return [self._folder.path / name for name in (METRICS, *(f"{split}.csv" for split in TABLES))]


def enlarged(frames: Pixels) -> Pixels:
    """Convert frames (T, 3, H, W) to a video (T, H, W, 3) of twice the size: 64 pixels are few to look at."""
    return np.ascontiguousarray(frames.transpose(0, 2, 3, 1).repeat(2, axis=1).repeat(2, axis=2))


def with_rewards(video: Pixels, rewards: Floats) -> Pixels:
    """Draw a bar for each reward (T,) below each frame: video (T, H, W, 3) to (T, H + BAR, W, 3)."""
    num_frames, _, width, _ = video.shape
    largest = max(float(rewards.max()), 1e-6)
    lengths = np.clip(rewards / largest * width, 0, width)
    bars = np.where(np.arange(width) < lengths[:, None], 220, 30).astype(np.uint8)  # (T, W)
    return np.concatenate([video, np.broadcast_to(bars[:, None, :, None], (num_frames, BAR, width, 3))], axis=1)
