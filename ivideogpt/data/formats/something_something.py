"""Something-Something v2: videos as folders of JPEG frames, listed per split. Knows its files; knows nothing of clips.

Frames are ``<root>/<id>/000001.jpg`` and so on, the lists ``{train,val}_video_folder.txt`` with lines
``<id> <num_frames> <label>``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ivideogpt.data.catalog import SOMETHING_SOMETHING, Split, something_something_labels
from ivideogpt.data.clips.segments import Indices
from ivideogpt.data.formats.episodes import Episode, pack_strings
from ivideogpt.errors import UserError

_LISTS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("val",), "all": ("train", "val")}


@dataclass(frozen=True)
class FrameFolder(Episode):
    """One video, without actions and rewards."""

    length: int

    @property
    def num_frames(self) -> int:
        return self.length

    @cached_property
    def frame_size(self) -> tuple[int, int]:
        height, width, _ = self._frame(0).shape
        return height, width

    def read(self, indices: Indices) -> NDArray[np.uint8]:
        wanted, places = np.unique(indices, return_inverse=True)
        frames = [self._frame(index) for index in wanted.tolist()]
        sizes = {frame.shape[:2] for frame in frames}
        if len(sizes) > 1:
            raise UserError(f"{self.path}: frames of different sizes {sorted(sizes)}; extract the video again")
        return np.stack(frames)[places]

    def _frame(self, index: int) -> NDArray[np.uint8]:
        path = os.path.join(self.path, f"{index + 1:06d}.jpg")
        try:
            with Image.open(path, formats=["JPEG"]) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: broken headers
            reason = getattr(error, "strerror", None) or error
            promised = f"the list promises {self.num_frames} frames"
            raise UserError(f"{path}: not a readable JPEG file ({str(reason).lower()}); {promised}") from error


@dataclass(frozen=True)
class SomethingEpisodes:
    """:class:`~ivideogpt.data.formats.episodes.Episodes` of a split."""

    root: str
    ids: NDArray[np.bytes_]
    lengths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    def open(self, index: int) -> FrameFolder:
        return FrameFolder(self.name(index), int(self.lengths[index]))

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.ids[index]))


def _listed(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (id, number of frames, label) of each line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); see somethingv2_lists in DATASET.yaml") from error
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                name, num_frames, label = line.split()
                yield name, int(num_frames), int(label)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {line!r}; expected '<id> <number of frames> <label>'") from error


def find_videos(root: str | None, lists: Path | None, split: Split, min_frames: int) -> SomethingEpisodes:
    """Find the videos of the classes in use with at least ``min_frames`` frames.

    Raises:
        UserError: a folder is not given, there is no list, or it has no suitable video.
    """
    dataset = f"dataset {SOMETHING_SOMETHING!r}"
    if root is None:
        raise UserError(f"{dataset} needs sthsth_root_path, the folder of <id>/000001.jpg")
    if not Path(root).is_dir():
        raise UserError(f"{dataset}: no folder {root}; set sthsth_root_path")
    if lists is None:
        raise UserError(f"{dataset}: DATASET.yaml has no somethingv2_lists, the folder of train_video_folder.txt")
    paths = [lists / f"{name}_video_folder.txt" for name in _LISTS[split]]
    labels = something_something_labels()
    listed = [video for path in paths for video in _listed(path)]
    videos = [(name, length) for name, length, label in listed if length >= min_frames and label in labels]
    if not videos:
        raise UserError(
            f"{', '.join(map(str, paths))}: no video of the {len(labels)} classes in use has {min_frames} frames; "
            "correct the list or shorten the segment"
        )
    names, lengths = zip(*videos, strict=True)
    return SomethingEpisodes(root, pack_strings(names), np.array(lengths, dtype=np.int32))
