"""Properties of each dataset, and the paths of its episodes. Knows names and folders; opens no episode."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from ivideogpt.data.formats.folder_index import npz_files
from ivideogpt.errors import UserError

Split = Literal["train", "test", "all"]

TABLES = Path(__file__).parent / "tables"
ROBONET_OXE_TEST_LIST = TABLES / "robonet_test_oxe.txt"  # unless DATASET.yaml names another
ROBONET_TEST_LIST = TABLES / "robonet_test_hdf5.txt"
DATASET_YAML = Path(__file__).parents[2] / "DATASET.yaml"  # exists in a checkout only; elsewhere set dataset_yaml
REFERENCE_STEP = 3  # native frames per step of fractal20220817_data, the reference rate of all datasets
TEST_EVERY = 100
SOMETHING_SOMETHING = "sthsth"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetInfo:
    """Properties of a public dataset: native frames per reference step, and the array that holds the frames."""

    name: str
    base_step: float = 1
    image_key: str = "image"

    def step(self, video_stepsize: int = 1) -> int:
        """Return the number of native frames from one frame of a clip to the next."""
        if self.name == SOMETHING_SOMETHING:
            return 1
        return max(round(video_stepsize * self.base_step / REFERENCE_STEP), 1)

    @property
    def square_crop(self) -> bool:
        return self.name == "tfds_robonet"


def dataset_info(name: str) -> DatasetInfo:
    """Return the properties of a listed dataset; others have step 1 and their frames under ``image``."""
    return DatasetInfo(name, **_paced_datasets().get(name, {}))


def is_known(name: str) -> bool:
    """Tell whether this is a listed dataset: a public one, Meta-World, or one of its tasks."""
    return name.removesuffix("-v3") in {*_paced_datasets(), "metaworld", *_table("metaworld_tasks")}


def something_something_labels() -> frozenset[int]:
    """Return the classes of Something-Something v2 that are used for training."""
    return frozenset(_table("something_v2_labels")["selected_label_ids"])


def stepsize_as_trained(names: Collection[str], trained_step: int | None) -> int:
    """Return the ``video_stepsize`` for a model whose clips had frames ``trained_step`` apart (None: unknown).

    Listed datasets keep their own frame rate, with a warning if the model was trained at another one. For all other
    names the rate is unknown, and the model's step is used.
    """
    if trained_step is None:
        return 1
    stepsize = 1 if any(name in _paced_datasets() for name in names) else trained_step * REFERENCE_STEP
    for name in names:
        step = dataset_info(name).step(stepsize)
        if step != trained_step:
            logger.warning(
                "dataset %s has its frames %d apart, but the model was trained on frames %d apart",
                name,
                step,
                trained_step,
            )
    return stepsize


def _paced_datasets() -> dict[str, Any]:
    return _table("oxe_datasets")["datasets"]


@lru_cache
def _table(name: str) -> Any:
    return json.loads((TABLES / f"{name}.json").read_text())


@dataclass(frozen=True)
class DatasetPaths:
    """DATASET.yaml: folders of the datasets that come with their own split, and two published lists."""

    bair_train_dataset: Path | None = None
    bair_test_dataset: Path | None = None
    robonet_train_dataset: Path | None = None
    robonet_test_dataset: Path | None = None
    robodesk_dataset: Path | None = None
    robosuite_dataset: Path | None = None
    robonet_oxe_test_list: Path | None = None
    somethingv2_lists: Path | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> DatasetPaths:
        """Read DATASET.yaml, by default the checkout's if it exists. Relative paths start at the file's folder."""
        if path is None and not DATASET_YAML.exists():
            return cls()
        path = Path(path or DATASET_YAML)
        try:
            entries = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise UserError(
                f"{path}: not a readable YAML file ({error}); expected lines such as 'bair_train_dataset: FOLDER'"
            ) from error
        known = {field.name for field in fields(cls)}
        if not isinstance(entries, dict) or not entries.keys() <= known:
            raise UserError(f"{path}: expected only the keys {', '.join(sorted(known))}; found {entries}")
        for key, value in entries.items():
            if value and not isinstance(value, str):
                raise UserError(f"{path}: {key} is {value!r}; expected one path")
        return cls(**{key: path.parent / Path(value).expanduser() for key, value in entries.items() if value})


@dataclass(frozen=True)
class OwnSplit:
    """A dataset with one folder per split: keys of DATASET.yaml, and file patterns below these folders."""

    train: tuple[str, str]
    test: tuple[str, str]


OWN_SPLITS = {
    "bair_robot_pushing": OwnSplit(("bair_train_dataset", "*.npz"), ("bair_test_dataset", "*.npz")),
    "tfds_robonet": OwnSplit(("robonet_train_dataset", "*.npz"), ("robonet_test_dataset", "*.npz")),
    "vp2_robodesk": OwnSplit(("robodesk_dataset", "*/train*/*.npz"), ("robodesk_dataset", "*/validation*/*.npz")),
    "vp2_robosuite": OwnSplit(("robosuite_dataset", "train/*.npz"), ("robosuite_dataset", "validation/*.npz")),
}


@dataclass(frozen=True)
class EpisodeFinder:
    """Finds the episode files of a dataset's split."""

    dataset_path: Path | None
    paths: DatasetPaths

    def __call__(self, name: str, split: Split) -> list[str]:
        """Return the paths, sorted by name.

        Raises:
            UserError: there is no such folder, or it has no episode for this split.
        """
        if name in OWN_SPLITS:
            return self._own_split(name, split)
        files = npz_files(self.folder(name))
        chosen = [files[i] for i in in_split(len(files), split)]
        if name == "robo_net":
            chosen = self._without_robonet_test(chosen)
        if not chosen:
            raise UserError(f"{self.folder(name)}: {no_episodes(split, len(files))}")
        return chosen

    def folder(self, name: str) -> Path:
        if self.dataset_path is None:
            raise UserError(f"dataset {name!r} needs dataset_path, the folder that holds {name}/*.npz")
        folder = self.dataset_path / name
        if not folder.is_dir():
            raise UserError(
                f"dataset {name!r}: no folder {folder}; put its episodes there or choose another mix or dataset_path"
            )
        return folder

    def _own_split(self, name: str, split: Split) -> list[str]:
        if split == "all":
            return self._own_split(name, "train") + self._own_split(name, "test")
        key, pattern = getattr(OWN_SPLITS[name], split)
        folder: Path | None = getattr(self.paths, key)
        if folder is None:
            raise UserError(
                f"dataset {name!r}: DATASET.yaml has no {key}; set it to the folder of the converted episodes"
            )
        below, _ = os.path.split(pattern)
        folders = [found for found in folder.glob(below) if found.is_dir()] if below else [folder]
        if not folder.is_dir():
            raise UserError(f"dataset {name!r}: no folder {folder}; correct {key} in DATASET.yaml")
        files = [file for found in sorted(folders, key=lambda found: f"{found}/") for file in npz_files(found)]
        if not files:
            raise UserError(f"dataset {name!r}: no files {folder / pattern}; correct {key} in DATASET.yaml")
        return files

    def _without_robonet_test(self, files: list[str]) -> list[str]:
        """Remove the test episodes of the benchmark ``tfds_robonet``, which the OXE copy of RoboNet contains."""
        path = self.paths.robonet_oxe_test_list or ROBONET_OXE_TEST_LIST
        try:
            excluded = {line.split()[1] for line in path.read_text().splitlines() if line.strip()}
        except (OSError, IndexError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}: expected lines '<hdf5 name> <episode>.npz' in robonet_oxe_test_list ({error})"
            ) from error
        return [file for file in files if os.path.basename(file) not in excluded]


def in_split(num_episodes: int, split: Split) -> range | list[int]:
    """Return the episode numbers of a split, for datasets without a split of their own."""
    if split == "train":
        return [number for number in range(num_episodes) if number % TEST_EVERY]
    return range(0, num_episodes, TEST_EVERY if split == "test" else 1)


def no_episodes(split: Split, num_episodes: int) -> str:
    return (
        f"no {split} episodes among {num_episodes} episodes (the first of every {TEST_EVERY} is the test split); "
        "add episodes"
    )
