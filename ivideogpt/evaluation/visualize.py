"""Render pictures that compare predictions with the truth. Knows pixels (T, H, W, 3), no models or metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ivideogpt.video_io import Pixels

ERROR_GAIN = 3  # a typical error is a few per cent of the range, too dark to see
CELL_HEIGHT = 128  # frames are enlarged by a whole factor to about this height
PAPER, INK, MUTED = (255, 255, 255), (20, 20, 20), (120, 120, 120)
TITLE_SIZE, LABEL_SIZE = 20, 15
PADDING, GAP, GROUP_GAP = 12, 2, 14


@dataclass(frozen=True)
class Row:
    """One line of a contact sheet: frames (T, H, W, 3) under the columns' labels."""

    label: str
    frames: Pixels


def error_frames(truth: Pixels, prediction: Pixels) -> Pixels:
    """Return |truth - prediction|, ``ERROR_GAIN`` times brighter: black is right, light is wrong."""
    difference = np.abs(truth.astype(np.int16) - prediction) * ERROR_GAIN
    return difference.clip(0, 255).astype(np.uint8)


def sample_rows(truth: Pixels, prediction: Pixels, name: str) -> list[Row]:
    """Return the rows of a contact sheet for one sampled future."""
    error = Row(f"error x{ERROR_GAIN}", error_frames(truth, prediction))
    return [Row("truth", truth), Row(name, prediction), error]


def contact_sheet(groups: Sequence[Sequence[Row]], context_frames: int, title: str = "") -> Pixels:
    """Render groups of rows as one labelled picture (H, W, 3), with the first ``context_frames`` columns set apart."""
    rows = [row for group in groups for row in group]
    num_frames, height, width = rows[0].frames.shape[:3]
    scale = max(1, round(CELL_HEIGHT / height))
    left = PADDING * 2 + round(max(font(LABEL_SIZE).getlength(row.label) for row in rows))
    lefts = [left + i * (width * scale + GAP) + (i >= context_frames) * GROUP_GAP for i in range(num_frames)]
    top = PADDING * 3 + TITLE_SIZE + LABEL_SIZE
    tops, y = [], top
    for group in groups:
        tops += [y + row * (height * scale + GAP) for row in range(len(group))]
        y += len(group) * (height * scale + GAP) + GROUP_GAP
    size = (lefts[-1] + width * scale + PADDING, tops[-1] + height * scale + PADDING)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((PADDING, PADDING), title, fill=INK, font=font(TITLE_SIZE))
    for i, x in enumerate(lefts):
        label = f"context {i}" if i < context_frames else f"frame {i}"
        draw.text((x, top - PADDING // 2 - LABEL_SIZE), label, fill=MUTED, font=font(LABEL_SIZE))
    for row, y in zip(rows, tops):
        draw.text((left - PADDING, y + height * scale // 2), row.label, fill=INK, font=font(LABEL_SIZE), anchor="rm")
        for frame, x in zip(row.frames, lefts):
            sheet.paste(Image.fromarray(frame.repeat(scale, axis=0).repeat(scale, axis=1)), (x, y))
    return np.asarray(sheet)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
