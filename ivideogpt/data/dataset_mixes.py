"""Named mixes of datasets, and their resolution into names and weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ivideogpt.data.catalog import TABLES, has_npz_files
from ivideogpt.data.formats.registry import find_format
from ivideogpt.errors import UserError

Mix = tuple[tuple[str, float], ...]

METAWORLD = "metaworld"
FOLDERS = "folder:"

# Lists of [dataset, weight]; other people's code iterates over them and passes them on as `datasets`.
DATASET_NAMED_MIXES: dict[str, list[list[str | float]]] = json.loads((TABLES / "mixes.json").read_text())
METAWORLD_TASKS: list[str] = json.loads((TABLES / "metaworld_tasks.json").read_text())
DATASET_NAMED_MIXES[METAWORLD] = [[task, 1.0] for task in METAWORLD_TASKS]


DatasetPath = str | os.PathLike[str] | None


def resolve_mix(mix: str | Mix, dataset_path: DatasetPath) -> Mix:
    """Return datasets with weights that sum to 1; weights of a dataset listed twice are added.

    ``mix`` is a name of :data:`DATASET_NAMED_MIXES`, ``folder:*`` for every sub-folder of ``dataset_path`` that holds
    episodes, ``folder:a,b`` for some of them, or pairs of name and weight. ``metaworld`` means its recorded tasks.
    A ``dataset_path`` that a registered format matches, such as ``lerobot:<folder>``, lists its datasets itself: any
    other mix than ``folder:a,b`` means all of them.
    """
    weights: dict[str, float] = {}
    for name, weight in _entries(mix, dataset_path):
        weights[name] = weights.get(name, 0.0) + float(weight)
    total = sum(weights.values())
    if not total > 0 or min(weights.values()) < 0:
        raise UserError(f"mix {mix!r} has no positive weights; expected pairs of dataset and weight")
    return tuple((name, weight / total) for name, weight in weights.items() if weight > 0)


def _entries(mix: str | Mix, dataset_path: DatasetPath) -> Mix:
    if not isinstance(mix, str):
        return mix
    listed = [name for name in mix.removeprefix(FOLDERS).split(",") if name]
    is_listed = mix.startswith(FOLDERS) and listed != ["*"]
    if is_listed and not listed:
        raise UserError(f"mix {mix!r} names no data set: give folder:<name>[,<name>...] or folder:*")
    if (known := find_format(dataset_path)) is not None:
        datasets = known.datasets(str(dataset_path))
        titles = [dataset.title for dataset in datasets]
        chosen = listed if is_listed else titles
        if missing := [name for name in chosen if name not in titles]:
            raise UserError(f"mix {mix!r}: {dataset_path} has no {', '.join(missing)}; it has {', '.join(titles)}")
        return tuple((dataset.name, 1.0) for dataset in datasets if dataset.title in chosen)
    dataset_path = Path(dataset_path) if dataset_path else None
    if mix.startswith(FOLDERS):
        names = listed if is_listed else _recorded(dataset_path)
        if not names:
            is_one = dataset_path is not None and has_npz_files(dataset_path)
            advice = "; it holds episodes itself: name the folder around it" if is_one else ""
            raise UserError(f"mix {mix!r}: no sub-folder of {dataset_path} holds .npz episodes{advice}")
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
    """Return the names of the sub-folders that hold episodes, sorted."""
    if dataset_path is None or not dataset_path.is_dir():
        raise UserError(f"dataset_path {dataset_path} is not a folder; expected one that holds <dataset>/*.npz")
    return sorted(folder.name for folder in dataset_path.iterdir() if folder.is_dir() and has_npz_files(folder))
