"""Metric lines, tables, curve and videos of a run. Part of a checkpoint: a resumed run cuts them back to it."""

from __future__ import annotations

import csv
import itertools
import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ivideogpt.errors import UserError
from ivideogpt.evaluation.visualize import INK, PAPER, font
from ivideogpt.files import atomic_file, going_on_without_room, write_text
from ivideogpt.runs.metrics_file import METRICS, append_metrics, finite_or_none
from ivideogpt.runs.trackers import Tracker, WeightsAndBiases, send_to_each
from ivideogpt.video_io import Pixels, write_gif
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
CAPTION_HEIGHT, CAPTION_SIZE = 18, 11  # pixels


def start_wandb(folder: RunFolder, group: str, config: Mapping[str, Any], is_resumed: bool) -> WeightsAndBiases:
    """One run of theirs for one of ours: its id stays in the folder. UserError if it cannot be reached."""
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
        self.trackers: list[Tracker] = []

    def close(self) -> None:
        send_to_each(self.trackers, lambda tracker: tracker.close())

    def write(self, split: str, frame: int, metrics: Mapping[str, float]) -> None:
        """Append a line, and a row if there is a table of this kind; non-finite values become null."""
        finite = finite_or_none(metrics)
        with writing(self._folder.path / METRICS):
            append_metrics(self._folder.path / METRICS, {"split": split, "frame": frame}, metrics)
        if split in TABLES:
            path = self._folder.path / f"{split}.csv"
            with writing(path), path.open("a", newline="") as file:
                table = csv.DictWriter(file, TABLES[split], extrasaction="ignore")
                if file.tell() == 0:
                    table.writeheader()
                table.writerow({"frame": frame, **finite})
        tracked = {f"{split}/{name}": value for name, value in finite.items() if value is not None}
        send_to_each(self.trackers, lambda tracker: tracker.log(tracked, frame))

    def write_video(self, kind: str, name: str, video: Pixels) -> None:
        """Write a video (T, H, W, 3). A full disk is logged, and the run goes on without."""
        path = self._folder.video(kind, name)
        with going_on_without_room():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_gif(path, video, VIDEO_FPS)

    def plot_success(self) -> None:
        from matplotlib.figure import Figure

        with (self._folder.path / "eval.csv").open(newline="") as file:
            points = [(int(row["frame"]), float(row["success_rate"])) for row in csv.DictReader(file)]
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        panel = figure.subplots()
        panel.plot(*zip(*points), marker="o", markersize=3)
        panel.set(xlabel="frames", ylabel="success rate", ylim=(-0.03, 1.03), title=self._folder.path.name)
        panel.grid(alpha=0.3)
        with going_on_without_room(), atomic_file(self._folder.path / CURVE) as file:
            figure.savefig(file, format="png", dpi=110)

    def set_aside_unsaved(self) -> None:
        """Move away the records of a run that was never saved and so cannot be continued."""
        for path in self._files():
            if path.exists():
                names = (f"{path.name}.old{number or ''}" for number in itertools.count())
                free = next(name for name in names if not path.with_name(name).exists())
                logger.warning("no snapshot in %s: beginning anew; %s is kept as %s", path.parent, path, free)
                with writing(path):
                    os.replace(path, path.with_name(free))

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


def enlarged(video: Pixels) -> Pixels:
    """Double the size of a video (T, H, W, 3): 64 pixels are few to look at."""
    return video.repeat(2, axis=1).repeat(2, axis=2)


def captioned(video: Pixels, texts: Iterable[str]) -> Pixels:
    """Enlarge a video (T, H, W, 3), and write a text below each frame."""
    pages = []
    for frame, text in zip(enlarged(video), texts, strict=True):
        height, width = frame.shape[:2]
        page = Image.new("RGB", (width, height + CAPTION_HEIGHT), PAPER)
        page.paste(Image.fromarray(frame))
        ImageDraw.Draw(page).text((4, height + 2), text, fill=INK, font=font(CAPTION_SIZE))
        pages.append(np.asarray(page))
    return np.stack(pages)
