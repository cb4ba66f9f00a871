"""Properties of each dataset, and the paths of its episodes. Knows names and folders; opens no episode.

Listing hundreds of thousands of files takes a second on a local disk, but up to minutes over a network. So lists of
large folders are kept in the user's cache folder, never beside the data, together with the folder's times, which change
whenever a file is added, removed or renamed. (The content of files is not cached: replacing one needs no new list.)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ivideogpt.errors import UserError
from ivideogpt.files import write_json
from ivideogpt.paths import folder_name, user_cache

Split = Literal["train", "test", "all"]

TABLES = Path(__file__).parent / "tables"
ROBONET_OXE_TEST_LIST = TABLES / "robonet_test_oxe.txt"  # unless DATASET.yaml names another
ROBONET_TEST_LIST = TABLES / "robonet_test_hdf5.txt"
DATASET_YAML = Path(__file__).parents[2] / "DATASET.yaml"  # exists in a checkout only; elsewhere set dataset_yaml
REFERENCE_STEP = 3  # native frames per step of fractal20220817_data, the reference rate of all datasets
TEST_EVERY = 100
SOMETHING_SOMETHING = "sthsth"
BENCHMARKED = "robo_net"  # the copy in OXE contains the test episodes of the benchmark tfds_robonet
INDEXED_FROM = 5000  # files; smaller folders are listed as fast as an index is read
# Times of file systems are as coarse as 2 s, which may hide a new file, and clocks of servers differ.
SETTLED_AFTER = 60.0  # seconds without a change

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
    def image_keys(self) -> tuple[str, ...]:
        """Return the arrays that may hold the frames: the first that is there does, as converters write ``image``."""
        return (self.image_key, "image")

    @property
    def square_crop(self) -> bool:
        return self.name == "tfds_robonet"


def dataset_info(name: str) -> DatasetInfo:
    """Return the properties of a listed dataset; others have step 1 and their frames under ``image``."""
    return DatasetInfo(name, **_paced_datasets().get(folder_name(name), {}))


def is_known(name: str) -> bool:
    """Tell whether this is a listed dataset: a public one, Meta-World, or one of its tasks."""
    return name.removesuffix("-v3") in {*_paced_datasets(), "metaworld", *_table("metaworld_tasks")}


def is_public(name: str) -> bool:
    """Tell whether this is the name of a listed dataset, which pace, camera or place of its episodes follow from."""
    return folder_name(name) in _paced_datasets()


def say_pace(name: str) -> tuple[str, ...]:
    """Return the line that says that training leaves out frames of a dataset of this name; none if it takes all."""
    step = dataset_info(name).step()
    told = f"of a data set called {name} training takes one frame in {step}, the pace of the public one"
    return (f"{told}; another --dataset_name takes all",) if step > 1 else ()


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
    stepsize = 1 if _paced_datasets().keys() & set(map(folder_name, names)) else trained_step * REFERENCE_STEP
    for name in names:
        step = dataset_info(name).step(stepsize)
        if step != trained_step:
            apart = "dataset %s has its frames %d apart, but the model was trained on frames %d apart"
            logger.warning(apart, name, step, trained_step)
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
            raise UserError(f"{path}: expected lines such as 'bair_train_dataset: FOLDER' ({error})") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(entries, dict) or not entries.keys() <= known:
            raise UserError(f"{path}: expected only the keys {', '.join(sorted(known))}; found {entries}")
        for key, value in entries.items():
            if value and not isinstance(value, str):
                raise UserError(f"{path}: {key} is {value!r}; expected one path")
        return cls(**{key: path.parent / Path(value).expanduser() for key, value in entries.items() if value})


# Datasets with one folder per split: a key of DATASET.yaml, and the folders below it that hold the npz files.
OWN_SPLITS: dict[str, dict[Split, tuple[str, str]]] = {
    "bair_robot_pushing": {"train": ("bair_train_dataset", ""), "test": ("bair_test_dataset", "")},
    "tfds_robonet": {"train": ("robonet_train_dataset", ""), "test": ("robonet_test_dataset", "")},
    "vp2_robodesk": {"train": ("robodesk_dataset", "*/train*"), "test": ("robodesk_dataset", "*/validation*")},
    "vp2_robosuite": {"train": ("robosuite_dataset", "train"), "test": ("robosuite_dataset", "validation")},
}


def find_files(name: str, split: Split, dataset_path: str | os.PathLike[str] | None, paths: DatasetPaths) -> list[str]:
    """Return the episode files of a dataset's split, sorted by name.

    Raises:
        UserError: there is no such folder, or it has no episode for this split.
    """
    if name in OWN_SPLITS:
        splits: tuple[Split, ...] = ("train", "test") if split == "all" else (split,)
        return [file for each in splits for file in _files_of_own_split(name, each, paths)]
    if not dataset_path:
        raise UserError(f"dataset {name!r} needs dataset_path, the folder that holds {name}/*.npz")
    folder = Path(dataset_path, name)
    if not folder.is_dir():
        raise UserError(f"dataset {name!r}: no folder {folder}; choose another mix or dataset_path")
    files = npz_files(folder)
    chosen = [files[i] for i in in_split(len(files), split)]
    if name == BENCHMARKED:
        excluded = _robonet_test(paths.robonet_oxe_test_list or ROBONET_OXE_TEST_LIST)
        chosen = [file for file in chosen if os.path.basename(file) not in excluded]
    if not chosen:
        raise UserError(f"{folder}: {no_episodes(split, len(files))}")
    return chosen


def _files_of_own_split(name: str, split: Split, paths: DatasetPaths) -> list[str]:
    key, below = OWN_SPLITS[name][split]
    folder: Path | None = getattr(paths, key)
    if folder is None:
        raise UserError(f"dataset {name!r}: DATASET.yaml has no {key}; set it to the folder of the converted episodes")
    if not folder.is_dir():
        raise UserError(f"dataset {name!r}: no folder {folder}; correct {key} in DATASET.yaml")
    folders = [found for found in folder.glob(below) if found.is_dir()] if below else [folder]
    files = [file for found in sorted(folders, key=lambda found: f"{found}/") for file in npz_files(found)]
    if not files:
        raise UserError(f"dataset {name!r}: no files {folder / below / '*.npz'}; correct {key} in DATASET.yaml")
    return files


def _robonet_test(path: Path) -> set[str]:
    try:
        return {line.split()[1] for line in path.read_text().splitlines() if line.strip()}
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected lines '<hdf5 name> <episode>.npz' ({error})") from error


def in_split(num_episodes: int, split: Split) -> range | list[int]:
    """Return the episode numbers of a split, for datasets without a split of their own; UserError if it is none."""
    if split not in get_args(Split):
        raise UserError(f"there is no split {split!r}: give one of {', '.join(get_args(Split))}")
    if split == "train":
        return [number for number in range(num_episodes) if number % TEST_EVERY]
    return range(0, num_episodes, TEST_EVERY if split == "test" else 1)


def no_episodes(split: Split, num_episodes: int) -> str:
    return f"no {split} episodes among {num_episodes} (the first of every {TEST_EVERY} is the test split)"


# ---- lists of files


def npz_files(folder: Path) -> list[str]:
    """List the npz files directly inside a folder, sorted, without hidden ones, which are still being written."""
    cache, state = user_cache(), _state(folder)
    name = hashlib.blake2b(os.fsencode(os.path.realpath(folder)), digest_size=16).hexdigest()
    index = cache and cache / "folders" / f"{name}.json"
    names = _read(index, state) if index else None
    if names is not None:
        logger.info("%s: %d episodes, listed in %s", folder, len(names), index)
    else:
        names = sorted(_scan(folder))
        # A later change is sure to be visible. Remote stores without real times return 0 or now.
        has_settled = state[0] > 0 and time.time_ns() - max(state[:2]) > SETTLED_AFTER * 1e9
        if index and len(names) >= INDEXED_FROM and has_settled and state == _state(folder):
            try:
                index.parent.mkdir(parents=True, exist_ok=True)
                write_json(index, {"folder": os.path.realpath(folder), "state": state, "names": names}, indent=None)
            except OSError as error:
                logger.info("%s is listed at every start: %s cannot be written (%s)", folder, index, error.strerror)
    prefix = os.path.join(folder, "")
    return [prefix + name for name in names]


def has_npz_files(folder: Path) -> bool:
    return any(True for _ in _scan(folder))


def _scan(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".npz") and not entry.name.startswith("."):
                    yield entry.name
    except OSError as error:
        raise _unlistable(folder, error) from error


def _state(folder: Path) -> list[int]:
    """Return times that change with the folder's entries. Copying tools can restore the first, not the second."""
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _unlistable(folder, error) from error
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read(index: Path, state: list[int]) -> list[str] | None:
    """Return the cached list if it matches the folder's current state."""
    try:
        content = json.loads(index.read_text())
        return content["names"] if content["state"] == state else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        logger.info("%s: not an index (%s); it is made again", index, error)
        return None


def _unlistable(folder: Path, error: OSError) -> UserError:
    reason = (error.strerror or str(error)).lower()
    return UserError(f"{folder}: cannot be listed ({reason}); expected a folder of .npz episodes")


def files_below(root: Path, suffixes: Collection[str]) -> list[Path]:
    """List the files with one of these (lower-case) suffixes, sorted, without hidden ones.

    Links to folders are followed, except in a cycle.
    """
    return [path for path in _walk(root, frozenset()) if path.suffix.lower() in suffixes]


def files_by_folder(root: Path, suffixes: Collection[str]) -> dict[Path, list[Path]]:
    """Return the files of :func:`files_below` by their folder, folders and files sorted."""
    folders: dict[Path, list[Path]] = {}
    for path in files_below(root, suffixes):
        folders.setdefault(path.parent, []).append(path)
    return dict(sorted(folders.items()))


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above or not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        visible = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    for name, is_folder in visible:
        if is_folder:
            yield from _walk(folder / name, above | {real})
        else:
            yield folder / name
