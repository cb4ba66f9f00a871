"""``python -m ivideogpt.data preview PATH``: pictures of recorded episodes with their actions."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ivideogpt.data.formats.episodes import EpisodeReader
from ivideogpt.data.formats.registry import EpisodesArgs, NamedEpisodes, sample
from ivideogpt.errors import UserError
from ivideogpt.evaluation.episode_pictures import Excerpt, plot_sheet, render_video
from ivideogpt.evaluation.output import check_folder_can_be_written
from ivideogpt.files import atomic_file
from ivideogpt.flags import option, parse
from ivideogpt.video_io import write_gif

VIDEO_FRAMES = 120  # longer episodes are subsampled


@dataclass(frozen=True, kw_only=True)
class PreviewArgs(EpisodesArgs):
    """Plot a contact sheet and a GIF of some recorded episodes, with their actions."""

    output_path: str = option("preview", "folder for the pictures")
    num_episodes: int = option(3, "episodes of each dataset, chosen by the seed", minimum=1)
    num_frames: int = option(9, "frames in a row of the contact sheet", minimum=2)
    fps: float = option(10, "frames per second of the GIFs", minimum=0.1)
    seed: int = option(0, "random seed of the choice of episodes", minimum=0)

    def validate(self) -> None:
        check_folder_can_be_written(Path(self.output_path), "--output_path")


def preview_dataset(dataset: NamedEpisodes, args: PreviewArgs) -> list[Path]:
    """Write ``<dataset>-<episode>.png`` and ``.gif``; return the sheets. Print the error of unreadable episodes."""
    sheets = []
    for number in tqdm(sample(len(dataset.episodes), args.num_episodes, args.seed), desc=dataset.name, unit="episode"):
        sheet = Path(args.output_path, f"{file_stem(dataset.name, dataset.episodes.name(number))}.png")
        try:
            plot_episode(dataset.episodes.open(number), sheet, args)
        except UserError as error:
            tqdm.write(f"not shown: {error}", file=sys.stderr)
            continue
        sheets.append(sheet)
    return sheets


def plot_episode(episode: EpisodeReader, sheet: Path, args: PreviewArgs) -> None:
    actions = None if episode.action_dim is None else episode.actions(np.arange(episode.num_frames))
    if actions is not None and not actions.size:
        actions = None
    video = read_excerpt(episode, np.arange(0, episode.num_frames, -(-episode.num_frames // VIDEO_FRAMES)))
    overview = read_excerpt(episode, evenly(episode.num_frames, args.num_frames))
    moving = read_excerpt(episode, liveliest(video, episode.num_frames, args.num_frames))
    with atomic_file(sheet) as file:
        plot_sheet(describe(episode), overview, moving, actions).savefig(file, format="png")
    write_gif(sheet.with_suffix(".gif"), render_video(video, actions), args.fps)


def read_excerpt(episode: EpisodeReader, numbers: np.ndarray) -> Excerpt:
    return Excerpt(numbers, episode.read(numbers))


def evenly(num_frames: int, number: int) -> np.ndarray:
    return np.linspace(0, num_frames - 1, min(number, num_frames)).round().astype(np.int64)


def liveliest(video: Excerpt, num_frames: int, number: int) -> np.ndarray:
    """Return the numbers of consecutive frames around the largest change of the picture."""
    pictures = video.frames[:, ::4, ::4].astype(np.int16)
    change = np.abs(np.diff(pictures, axis=0)).mean(axis=(1, 2, 3))
    peak = video.numbers[int(change.argmax())] if len(change) else 0
    start = int(np.clip(peak - number // 2 + 1, 0, max(num_frames - number, 0)))
    return np.arange(start, min(start + number, num_frames))


def describe(episode: EpisodeReader) -> str:
    height, width = episode.frame_size
    actions = "no actions" if episode.action_dim is None else f"actions of {episode.action_dim} dimensions"
    return f"{episode.path}: {episode.num_frames} frames of {height} x {width} pixels, {actions}"


def file_stem(dataset: str, episode: str) -> str:
    """Return a file name made of both, without characters that are special in paths."""
    own = os.path.basename(episode).removesuffix(".npz")
    says_dataset = own == dataset or own.startswith(f"{dataset}#")
    return re.sub(r"[^\w.-]+", "-", own if says_dataset else f"{dataset}-{own}")


def main(argv: Sequence[str]) -> None:
    args = parse(PreviewArgs, argv)
    datasets = args.find()
    Path(args.output_path).mkdir(parents=True, exist_ok=True)
    sheets = [sheet for dataset in datasets for sheet in preview_dataset(dataset, args)]
    if not sheets:
        raise UserError(
            f"{args.path}: none of the chosen episodes could be read; see python -m ivideogpt.data validate"
        )
    print("\n".join(f"{sheet} and {sheet.with_suffix('.gif').name}" for sheet in sheets))
