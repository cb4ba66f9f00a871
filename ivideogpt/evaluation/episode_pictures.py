"""Pictures of a recorded episode with its actions, to see whether they belong together. Knows pixels and numbers.

Under a frame stands what was done *at* it: ``action[i]`` under ``image[i]``, which should lead to the next one.
Shapes: N frames of the episode, n frames shown, D action dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ivideogpt.evaluation.visualize import INK, LABEL_SIZE, MUTED, PADDING, PAPER, TITLE_SIZE, font
from ivideogpt.video_io import Pixels

CELL_HEIGHT, FILM_HEIGHT = 128, 256  # frames are resized to about this height
GAP = 4
BARS_HEIGHT, LANE_HEIGHT, LANE_LABEL_SIZE = 48, 26, LABEL_SIZE - 2
MAX_LANES = 16  # dimensions that are drawn
ROW_NAMES = OVERVIEW, MOVING, ACTION = "whole episode", "one after another", "action"
GRID = (215, 215, 215)
COLOURS = [
    (31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14),
    (148, 103, 189), (140, 86, 75), (227, 119, 194), (23, 190, 207),
]  # fmt: skip


@dataclass(frozen=True)
class Excerpt:
    """Frames (n, H, W, 3) of an episode and their numbers in it."""

    numbers: NDArray[np.int64]
    frames: Pixels


@dataclass(frozen=True)
class Curves:
    """Actions (N, D), and the range that each dimension is drawn in: the same for every picture of an episode."""

    values: NDArray[np.floating]
    low: NDArray[np.floating]
    high: NDArray[np.floating]

    @classmethod
    def of(cls, actions: NDArray[np.floating]) -> Curves:
        """Zero is always inside: the last row is left out of the range, as it may be made up."""
        values = actions[:, :MAX_LANES]
        real = values[:-1] if len(values) > 1 else values
        return cls(values, np.minimum(real.min(axis=0), 0), np.maximum(real.max(axis=0), 0))

    @property
    def num_lanes(self) -> int:
        return self.values.shape[1]

    @property
    def lane_names(self) -> list[str]:
        return [f"dim {dim}: {self.low[dim]:.3g} to {self.high[dim]:.3g}" for dim in range(self.num_lanes)]

    def share(self, dim: int, value: float | NDArray[np.floating]) -> NDArray[np.floating]:
        """Where a value stands between the lower (0) and the upper end (1) of its dimension's range."""
        span = self.high[dim] - self.low[dim]
        return np.clip((value - self.low[dim]) / (span or 1), 0, 1)

    def signed_share(self, dim: int, value: float) -> float:
        """A value between -1 and 1, 0 being 0: the larger end of the range counts as 1."""
        reach = max(abs(float(self.low[dim])), abs(float(self.high[dim])))
        return max(-1.0, min(1.0, value / (reach or 1)))


@dataclass(frozen=True)
class Axis:
    """From the number of a frame to a place across the picture."""

    first: int
    last: int
    left: float
    right: float

    def __call__(self, number: int) -> float:
        return self.left + (self.right - self.left) * (number - self.first) / max(self.last - self.first, 1)


def episode_sheet(title: str, overview: Excerpt, moving: Excerpt, curves: Curves | None) -> Pixels:
    """The whole episode in some frames over the course of its actions; then frames one after another, with bars."""
    margin = _margin(curves)
    parts = [_frame_row(overview, OVERVIEW, margin)]
    if curves is not None:
        lanes = _lanes(curves, _axis_under(overview, margin), parts[0].width, overview.numbers)
        for dim, name in enumerate(curves.lane_names):
            _write_left_of(lanes, margin, dim * LANE_HEIGHT + LANE_HEIGHT // 2, name, LANE_LABEL_SIZE)
        parts.append(lanes)
    parts.append(_frame_row(moving, MOVING, margin))
    if curves is not None:
        parts.append(_bar_row(moving, curves, margin))
    return _stacked(title, parts)


def episode_film(episode: Excerpt, curves: Curves | None) -> Pixels:
    """Frames (n, H', W', 3) with their number, over the course of the actions and a mark at the present one."""
    pictures = [_resized(frame, FILM_HEIGHT) for frame in episode.frames]
    width = max(pictures[0].width, FILM_HEIGHT)
    axis = Axis(0, int(episode.numbers[-1]), PADDING, width - PADDING)
    strip = None if curves is None else _lanes(curves, axis, width)
    return np.stack([_film_frame(of, int(i), strip, axis, width) for of, i in zip(pictures, episode.numbers)])


def _film_frame(picture: Image.Image, number: int, strip: Image.Image | None, axis: Axis, width: int) -> Pixels:
    top = LABEL_SIZE + GAP
    height = top + picture.height + (strip.height if strip else 0)
    canvas = Image.new("RGB", (width, height), PAPER)
    canvas.paste(picture, ((width - picture.width) // 2, top))
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, 0), f"image[{number}]", fill=INK, font=font(LABEL_SIZE))
    if strip is not None:
        canvas.paste(strip, (0, top + picture.height))
        x = axis(number)
        draw.line([(x, top + picture.height), (x, height)], fill=INK, width=2)
    return np.asarray(canvas)


# ---- rows of the sheet


def _margin(curves: Curves | None) -> int:
    """Width of what stands left of the rows."""
    widths = [font(LABEL_SIZE).getlength(name) for name in ROW_NAMES]
    widths += [font(LANE_LABEL_SIZE).getlength(name) for name in (curves.lane_names if curves else ())]
    return PADDING * 2 + math.ceil(max(widths))


def _write_left_of(row: Image.Image, margin: int, middle: int, name: str, size: int = LABEL_SIZE) -> None:
    ImageDraw.Draw(row).text((margin - PADDING, middle), name, fill=INK, font=font(size), anchor="rm")


def _frame_row(excerpt: Excerpt, name: str, margin: int) -> Image.Image:
    pictures = [_resized(frame, CELL_HEIGHT) for frame in excerpt.frames]
    lefts = _lefts(len(pictures), pictures[0].width, margin)
    top = LABEL_SIZE + GAP
    row = Image.new("RGB", (lefts[-1] + pictures[0].width + PADDING, top + pictures[0].height), PAPER)
    draw = ImageDraw.Draw(row)
    _write_left_of(row, margin, top + CELL_HEIGHT // 2, name)
    for picture, left, number in zip(pictures, lefts, excerpt.numbers):
        row.paste(picture, (left, top))
        draw.text((left, 0), f"image[{number}]", fill=MUTED, font=font(LABEL_SIZE))
    return row


def _bar_row(excerpt: Excerpt, curves: Curves, margin: int) -> Image.Image:
    """Under each frame a bar for each dimension of the action taken at it, up or down from zero."""
    cell = _resized(excerpt.frames[0], CELL_HEIGHT).width
    lefts = _lefts(len(excerpt.frames), cell, margin)
    row = Image.new("RGB", (lefts[-1] + cell + PADDING, BARS_HEIGHT + LABEL_SIZE + GAP), PAPER)
    draw = ImageDraw.Draw(row)
    _write_left_of(row, margin, BARS_HEIGHT // 2, ACTION)
    step, zero = cell / curves.num_lanes, (BARS_HEIGHT - 1) / 2
    for left, number in zip(lefts, excerpt.numbers):
        draw.line([(left, zero), (left + cell, zero)], fill=GRID)
        if number < len(curves.values):
            for dim, value in enumerate(curves.values[number]):
                end = zero - curves.signed_share(dim, float(value)) * zero
                x = left + dim * step
                bar = [x + 1, min(zero, end), x + max(step - 2, 1), max(zero, end)]
                draw.rectangle(bar, fill=COLOURS[dim % len(COLOURS)])
        draw.text((left, BARS_HEIGHT + GAP // 2), f"action[{number}]", fill=MUTED, font=font(LABEL_SIZE))
    return row


def _lanes(
    curves: Curves, axis: Axis, width: int, marks: Sequence[int] | NDArray[np.int64] | None = None
) -> Image.Image:
    """One lane a dimension over the whole episode, with a faint line at zero and at the marks."""
    lanes = Image.new("RGB", (width, curves.num_lanes * LANE_HEIGHT + GAP), PAPER)
    draw = ImageDraw.Draw(lanes)
    for number in () if marks is None else marks:
        draw.line([(axis(number), 0), (axis(number), lanes.height)], fill=GRID)
    for dim in range(curves.num_lanes):
        bottom, span = (dim + 1) * LANE_HEIGHT - 3, LANE_HEIGHT - 6
        zero = bottom - float(curves.share(dim, 0.0)) * span
        draw.line([(axis.left, zero), (axis.right, zero)], fill=GRID)
        heights = bottom - curves.share(dim, curves.values[:, dim]) * span
        points = [(axis(i), float(y)) for i, y in enumerate(heights)]
        draw.line(points, fill=COLOURS[dim % len(COLOURS)], width=2)
    return lanes


def _stacked(title: str, parts: Sequence[Image.Image]) -> Pixels:
    height = PADDING * 2 + TITLE_SIZE + sum(part.height + PADDING for part in parts)
    width = max(*(part.width for part in parts), math.ceil(font(TITLE_SIZE).getlength(title)) + 2 * PADDING)
    sheet = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(sheet).text((PADDING, PADDING), title, fill=INK, font=font(TITLE_SIZE))
    top = PADDING * 2 + TITLE_SIZE
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + PADDING
    return np.asarray(sheet)


def _lefts(number: int, width: int, margin: int) -> list[int]:
    return [margin + i * (width + GAP) for i in range(number)]


def _axis_under(excerpt: Excerpt, margin: int) -> Axis:
    """From the middle of the first frame shown to the middle of the last: they are evenly spaced."""
    width = _resized(excerpt.frames[0], CELL_HEIGHT).width
    lefts = _lefts(len(excerpt.frames), width, margin)
    return Axis(int(excerpt.numbers[0]), int(excerpt.numbers[-1]), lefts[0] + width / 2, lefts[-1] + width / 2)


def _resized(frame: Pixels, height: int) -> Image.Image:
    """Small frames by whole numbers, as blurred pixels hide what a model sees; large ones smoothly."""
    picture = Image.fromarray(frame)
    if picture.height > height:
        return picture.resize((max(round(picture.width * height / picture.height), 1), height), Image.Resampling.BOX)
    scale = height // picture.height
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
