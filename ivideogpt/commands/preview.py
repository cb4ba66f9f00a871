"""``python -m ivideogpt.data preview PATH``: pictures of recorded episodes with their actions, to see that they match.

A frame is shown above the action taken *at* it: ``action[i]`` under ``image[i]``, which should lead to the next one.
Shapes: N frames of the episode, n frames shown, D action dimension.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from ivideogpt.data.formats.episodes import Episode
from ivideogpt.data.formats.registry import EpisodesArgs, NamedEpisodes, sample
from ivideogpt.errors import UserError
from ivideogpt.files import atomic_file, check_folder_can_be_written, file_stem
from ivideogpt.flags import option, parse
from ivideogpt.video_io import Pixels, write_gif

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Actions = NDArray[np.floating]

MAX_DIMENSIONS = 16  # plotted action dimensions
CELL_INCHES, MARGIN_INCHES, DPI = 1.4, 1.5, 100
VIDEO_HEIGHT, STRIP_HEIGHT = 256, 120  # frames are resized to about the first
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


@dataclass(frozen=True)
class Excerpt:
    """Frames (n, H, W, 3) of an episode and their numbers in it."""

    numbers: NDArray[np.int64]
    frames: Pixels

    @classmethod
    def read(cls, episode: Episode, numbers: NDArray[np.int64]) -> Excerpt:
        return cls(numbers, episode.read(numbers))


def preview_dataset(dataset: NamedEpisodes, args: PreviewArgs) -> list[Path]:
    """Write ``<dataset>-<episode>.png`` and ``.gif``; return the sheets. Print the error of unreadable episodes."""
    sheets = []
    for number in tqdm(sample(len(dataset.episodes), args.num_episodes, args.seed), desc=dataset.name, unit="episode"):
        sheet = Path(args.output_path, sheet_name(dataset.name, dataset.episodes.name(number)))
        try:
            plot_episode(dataset.episodes.open(number), sheet, args)
        except UserError as error:
            tqdm.write(f"not shown: {error}", file=sys.stderr)
            continue
        sheets.append(sheet)
    return sheets


def plot_episode(episode: Episode, sheet: Path, args: PreviewArgs) -> None:
    actions = None if episode.action_dim is None else episode.actions(np.arange(episode.num_frames))
    if actions is not None and not actions.size:
        actions = None
    num_frames, (height, width) = episode.num_frames, episode.frame_size
    video = Excerpt.read(episode, np.arange(0, num_frames, -(-num_frames // VIDEO_FRAMES)))
    evenly = np.linspace(0, num_frames - 1, min(args.num_frames, num_frames)).round().astype(np.int64)
    overview, moving = (Excerpt.read(episode, some) for some in (evenly, liveliest(video, num_frames, args.num_frames)))
    shown = "no actions" if episode.action_dim is None else f"actions of {episode.action_dim} dimensions"
    title = f"{episode.path}: {num_frames} frames of {height} x {width} pixels, {shown}"
    with atomic_file(sheet) as file:
        plot_sheet(title, overview, moving, actions).savefig(file, format="png")
    write_gif(sheet.with_suffix(".gif"), render_video(video, actions), args.fps)


def liveliest(video: Excerpt, num_frames: int, number: int) -> np.ndarray:
    """Return the numbers of consecutive frames around the largest change of the picture."""
    pictures = video.frames[:, ::4, ::4].astype(np.int16)
    change = np.abs(np.diff(pictures, axis=0)).mean(axis=(1, 2, 3))
    peak = video.numbers[int(change.argmax())] if len(change) else 0
    start = int(np.clip(peak - number // 2 + 1, 0, max(num_frames - number, 0)))
    return np.arange(start, min(start + number, num_frames))


def sheet_name(dataset: str, episode: str) -> str:
    own = os.path.basename(episode).removesuffix(".npz")
    says_dataset = own == dataset or own.startswith(f"{dataset}#")
    return file_stem(own if says_dataset else f"{dataset}-{own}") + ".png"


def main(argv: Sequence[str]) -> None:
    args = parse(PreviewArgs, argv)
    datasets = args.find()
    Path(args.output_path).mkdir(parents=True, exist_ok=True)
    sheets = [sheet for dataset in datasets for sheet in preview_dataset(dataset, args)]
    if not sheets:
        raise UserError(f"{args.path}: none of the chosen episodes can be read; see python -m ivideogpt.data validate")
    print("\n".join(f"{sheet} and {sheet.with_suffix('.gif').name}" for sheet in sheets))


def plot_sheet(title: str, overview: Excerpt, moving: Excerpt, actions: Actions | None) -> Figure:
    """Plot some frames of the whole episode over its actions (N, D); then frames one after another, with bars."""
    from matplotlib.figure import Figure

    heights = [1.2, 1.2] if actions is None else [1.2, 2, 1.2, 0.6]
    num_columns = max(len(overview.numbers), len(moving.numbers))
    size = (CELL_INCHES * num_columns + MARGIN_INCHES, CELL_INCHES * sum(heights) + 0.5)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize="medium", wrap=True)
    grid = figure.add_gridspec(len(heights), num_columns, height_ratios=heights)
    for row, excerpt in ((0, overview), (len(heights) // 2, moving)):
        for column, (number, frame) in enumerate(zip(excerpt.numbers, excerpt.frames)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(frame, interpolation="nearest")
            axes.set_title(f"image[{number}]", fontsize="small")
            axes.set_axis_off()
    if actions is not None:
        curves = figure.add_subplot(grid[1, : len(overview.numbers)])
        _plot_curves(curves, actions, overview.numbers)
        values = actions[:, :MAX_DIMENSIONS]
        reach = np.abs(values[:-1] if len(values) > 1 else values).max(axis=0)  # the last row may be padding
        for column, number in enumerate(moving.numbers):
            axes = figure.add_subplot(grid[3, column])
            axes.set(xlabel=f"action[{number}]", ylim=(-1.05, 1.05), xticks=[], yticks=[])
            axes.axhline(0, color="0.8", linewidth=0.8)
            if number < len(values):
                colours = [f"C{dim % 10}" for dim in range(values.shape[1])]
                axes.bar(range(values.shape[1]), values[number] / np.where(reach > 0, reach, 1), color=colours)
    return figure


def _plot_curves(axes: Axes, actions: Actions, numbers: NDArray[np.int64]) -> None:
    """Plot a line a dimension under evenly spaced frames with these numbers."""
    for dim, values in enumerate(actions[:, :MAX_DIMENSIONS].T):
        axes.plot(values, color=f"C{dim % 10}", linewidth=1, label=f"dim {dim}")
    half = (numbers[-1] - numbers[0]) / max(len(numbers) - 1, 1) / 2 or 0.5
    axes.set_xlim(numbers[0] - half, numbers[-1] + half)
    axes.set_xticks(numbers, [f"action[{number}]" for number in numbers], fontsize="x-small")
    axes.tick_params(axis="y", labelsize="x-small")
    axes.grid(alpha=0.4)
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))


def render_video(episode: Excerpt, actions: Actions | None) -> Pixels:
    """Render frames (n, H', W', 3) with their number, over the actions and a mark at the present one."""
    pictures = [_resized(frame) for frame in episode.frames]
    width = max(pictures[0].width, VIDEO_HEIGHT)
    last = max(int(episode.numbers[-1]), 1)
    strip = np.zeros((0, width, 3), np.uint8) if actions is None else _render_strip(actions, last, width)
    video = []
    for picture, number in zip(pictures, episode.numbers):
        canvas = Image.new("RGB", (width, picture.height), "white")
        canvas.paste(picture, ((width - picture.width) // 2, 0))
        ImageDraw.Draw(canvas).text((4, 2), f"image[{number}]", fill="white", stroke_fill="black", stroke_width=1)
        marked = strip.copy()
        place = round(int(number) / last * (width - 2))
        marked[:, place : place + 2] = 0
        video.append(np.concatenate([np.asarray(canvas), marked]))
    return np.stack(video)


def _render_strip(actions: Actions, last: int, width: int) -> Pixels:
    """Render the actions from one edge to the other, each dimension within its own range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(width / DPI, STRIP_HEIGHT / DPI), dpi=DPI))
    axes = canvas.figure.add_axes((0, 0, 1, 1), xlim=(0, last))
    axes.set_axis_off()
    for dim, values in enumerate(actions[:, :MAX_DIMENSIONS].T):
        low, high = values.min(), values.max()
        axes.plot((values - low) / ((high - low) or 1), color=f"C{dim % 10}", linewidth=1)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _resized(frame: Pixels) -> Image.Image:
    """Resize small frames by whole numbers, as blurred pixels hide what a model sees; large ones smoothly."""
    picture = Image.fromarray(frame)
    if picture.height > VIDEO_HEIGHT:
        size = max(round(picture.width * VIDEO_HEIGHT / picture.height), 1), VIDEO_HEIGHT
        return picture.resize(size, Image.Resampling.BOX)
    scale = VIDEO_HEIGHT // picture.height
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
