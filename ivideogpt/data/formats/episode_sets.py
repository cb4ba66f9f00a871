"""Where the episodes of each dataset are read from. Knows which format a dataset is in; opens no episode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ivideogpt.data.catalog import (
    SOMETHING_SOMETHING,
    DatasetPaths,
    EpisodeFinder,
    Split,
    dataset_info,
    in_split,
    no_episodes,
)
from ivideogpt.data.formats.episodes import Episodes, NpzEpisodes, subset
from ivideogpt.data.formats.npz_arrays import InflatedArrays
from ivideogpt.data.formats.registry import find_format
from ivideogpt.data.formats.something_something import SomethingEpisodes
from ivideogpt.data.packed_strings import PackedStrings
from ivideogpt.errors import UserError


@dataclass(frozen=True)
class EpisodeSets:
    """The episodes of a split by their dataset's name."""

    split: Split
    dataset_path: str | None
    paths: DatasetPaths
    arrays: InflatedArrays
    sthsth_root_path: str | None = None
    min_sthsth_frames: int = 1

    def __call__(self, name: str) -> Episodes:
        """Raises UserError naming the folder or the key of DATASET.yaml without which there are none."""
        known = find_format(self.dataset_path)
        if known is not None:
            datasets = known.datasets(str(self.dataset_path))
            episodes = next(dataset for dataset in datasets if dataset.name == name).open()
            numbers = in_split(len(episodes), self.split)
            if not numbers:
                raise UserError(f"{name}: {no_episodes(self.split, len(episodes))}")
            return subset(episodes, numbers)
        if name == SOMETHING_SOMETHING:
            return self._something_something()
        find = EpisodeFinder(Path(self.dataset_path) if self.dataset_path else None, self.paths)
        return NpzEpisodes(PackedStrings(find(name, self.split)), dataset_info(name).image_key, self.arrays)

    def _something_something(self) -> Episodes:
        if self.sthsth_root_path is None:
            raise UserError(f"dataset {SOMETHING_SOMETHING!r} needs sthsth_root_path, the folder of <id>/000001.jpg")
        if not Path(self.sthsth_root_path).is_dir():
            raise UserError(f"dataset {SOMETHING_SOMETHING!r}: no folder {self.sthsth_root_path}; set sthsth_root_path")
        if self.paths.somethingv2_lists is None:
            raise UserError(
                f"dataset {SOMETHING_SOMETHING!r}: DATASET.yaml has no somethingv2_lists; set it to the folder of "
                "train_video_folder.txt and val_video_folder.txt"
            )
        return SomethingEpisodes.load(
            Path(self.sthsth_root_path), self.paths.somethingv2_lists, self.split, self.min_sthsth_frames
        )
