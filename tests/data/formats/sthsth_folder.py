"""Something-Something v2 as it is published: frame folders and lists. Frame i of a video is grey at ``level(i)``."""

from pathlib import Path

import numpy as np
from PIL import Image


def level(frame: int) -> int:
    return 10 + 8 * frame


def write_frames(folder: Path, num_frames: int, size: tuple[int, int] = (24, 32)) -> None:
    folder.mkdir(parents=True)
    for i in range(num_frames):
        pixels = np.full((*size, 3), level(i), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i + 1:06d}.jpg", quality=95)


def write_list(folder: Path, split: str, *videos: tuple[str, int, int]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [f"{name} {num_frames} {label}\n" for name, num_frames, label in videos]
    (folder / f"{split}_video_folder.txt").write_text("".join(lines))
