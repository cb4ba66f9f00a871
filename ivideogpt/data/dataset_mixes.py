"""Named mixtures of datasets and how they turn into names and weights."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ivideogpt.data.catalog import TABLES
from ivideogpt.data.formats.folder_index import has_npz_files
from ivideogpt.errors import UserError

Mix = tuple[tuple[str, float], ...]

METAWORLD = "metaworld"
FOLDERS = "folder:"
LEROBOT = "lerobot:"
ACTION_CHOICE = "action="

# Lists of [dataset, weight]; other people's code iterates over them and passes them on as `datasets`.
DATASET_NAMED_MIXES: dict[str, list[list[str | float]]] = json.loads((TABLES / "mixes.json").read_text())
METAWORLD_TASKS: list[str] = json.loads((TABLES / "metaworld_tasks.json").read_text())
DATASET_NAMED_MIXES[METAWORLD] = [[task, 1.0] for task in METAWORLD_TASKS]


DatasetPath = str | os.PathLike[str] | None


def resolve_mix(mix: str | Mix, dataset_path: DatasetPath) -> Mix:
    """Datasets with weights that sum to 1; a dataset listed twice adds up.

    ``mix`` is a name of :data:`DATASET_NAMED_MIXES`, ``folder:*`` for every sub-folder of ``dataset_path`` that holds
    episodes, ``folder:a,b`` for some of them, or pairs of name and weight. ``metaworld`` means its recorded tasks.
    A ``dataset_path`` of ``lerobot:<folder>[@<camera>][@action=<feature>],...`` lists its datasets itself, so that no
    mix is looked up.
    """
    weights: dict[str, float] = {}
    for name, weight in _entries(mix, dataset_path):
        weights[name] = weights.get(name, 0.0) + float(weight)
    total = sum(weights.values())
    if not total > 0 or min(weights.values()) < 0:
        raise UserError(f"mix {mix!r} has no positive weights; expected pairs of dataset and weight")
    return tuple((name, weight / total) for name, weight in weights.items() if weight > 0)


def is_lerobot(dataset_path: DatasetPath) -> bool:
    return isinstance(dataset_path, str) and dataset_path.startswith(LEROBOT)


@dataclass(frozen=True)
class LeRobotPath:
    """A dataset of a ``lerobot:`` path: ``<folder>[@<camera>][@action=<feature>]``."""

    folder: Path
    camera: str | None = None
    action_key: str | None = None

    @classmethod
    def parse(cls, name: str) -> LeRobotPath:
        """Raises UserError for two cameras, or two features as the action."""
        folder, choices = _split_at_folder(name)
        actions = [choice.removeprefix(ACTION_CHOICE) for choice in choices if choice.startswith(ACTION_CHOICE)]
        cameras = [choice for choice in choices if not choice.startswith(ACTION_CHOICE)]
        if len(actions) > 1 or len(cameras) > 1:
            raise UserError(f"{name}: expected <folder>[@<camera>][@action=<feature>]; '@' begins a choice there")
        return cls(folder, next(iter(cameras), None), next(iter(actions), None))


def lerobot_names(dataset_path: str) -> list[str]:
    """The datasets of a ``lerobot:`` path. Commas separate them, but for those in the name of a folder that exists."""
    words = dataset_path.removeprefix(LEROBOT).split(",")
    names = []
    while words:
        joined = (",".join(words[:number]) for number in range(1, len(words) + 1))
        name = next((name for name in joined if _is_lerobot_folder(_split_at_folder(name)[0])), words[0])
        words = words[name.count(",") + 1 :]
        names.append(name)
    return [name for name in names if name]


def _split_at_folder(name: str) -> tuple[Path, list[str]]:
    """The folder, which may hold ``@`` itself if it exists, and what is chosen of it."""
    words = name.split("@")
    folders = [Path("@".join(words[:number])).expanduser() for number in range(1, len(words) + 1)]
    number = next((number for number, folder in enumerate(folders) if _is_lerobot_folder(folder)), 0)
    return folders[number], [word for word in words[number + 1 :] if word]


def _is_lerobot_folder(folder: Path) -> bool:
    return os.path.isfile(folder / "meta" / "info.json")


def _entries(mix: str | Mix, dataset_path: DatasetPath) -> Mix:
    if not isinstance(mix, str):
        return mix
    if is_lerobot(dataset_path):
        names = lerobot_names(str(dataset_path))
        if not names:
            raise UserError(
                f"dataset_path {dataset_path}: expected {LEROBOT}<folder>[@<camera>][@action=<feature>][,<folder>...]"
            )
        return tuple((name, 1.0) for name in names)
    dataset_path = Path(dataset_path) if dataset_path else None
    if mix.startswith(FOLDERS):
        wanted = mix.removeprefix(FOLDERS)
        names = _recorded(dataset_path) if wanted == "*" else [name for name in wanted.split(",") if name]
        if not names:
            raise UserError(
                f"mix {mix!r}: no sub-folder of {dataset_path} holds .npz episodes; expected FOLDER/<dataset>/*.npz"
            )
        return tuple((name, 1.0) for name in names)
    if mix == METAWORLD:
        names = [name for name in _recorded(dataset_path) if name.removesuffix("-v3") in METAWORLD_TASKS]
        if not names:
            raise UserError(
                f"mix {mix!r}: no Meta-World task folder with .npz episodes in {dataset_path}; "
                "record some with datasets/record_metaworld.py or choose folder:*"
            )
        return tuple((name, 1.0) for name in names)
    if mix not in DATASET_NAMED_MIXES:
        raise UserError(
            f"unknown mix {mix!r}; choose {', '.join(DATASET_NAMED_MIXES)}, folder:<name>[,<name>...] or folder:*"
        )
    return tuple((str(name), float(weight)) for name, weight in DATASET_NAMED_MIXES[mix])


def _recorded(dataset_path: Path | None) -> list[str]:
    """Sub-folders that hold episodes, by name."""
    if dataset_path is None or not dataset_path.is_dir():
        raise UserError(f"dataset_path {dataset_path} is not a folder; expected one that holds <dataset>/*.npz")
    return sorted(folder.name for folder in dataset_path.iterdir() if folder.is_dir() and has_npz_files(folder))
