"""Convert a dataset of Open X-Embodiment from RLDS to npz episodes. Needs tensorflow_datasets, not tensorflow.

    python datasets/oxe_data_converter.py --dataset_name bridge --input_path OXE --output_path data/oxe

reads ``OXE/bridge/0.1.0`` and writes ``data/oxe/bridge/<split>_eps_<number>.npz`` with the frames of the camera that
models are trained on. Episodes are numbered in the order of ``builder.as_dataset(split)`` unshuffled, which interleaves
the shards. Run the same command again to go on after an interruption.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.catalog import dataset_info
from ivideogpt.data.convert.conversion import ConversionArgs, Job, Skipped, Summary
from ivideogpt.data.convert.tfrecords import find_records
from ivideogpt.errors import UserError, cli, require
from ivideogpt.flags import REQUIRED, option, parse

VERSION = "0.1.0"
OTHER_VERSIONS = {"robo_net": "1.0.0", "cmu_playing_with_food": "1.0.0", "language_table": "0.0.1"}
FAMILY = re.compile(r"(uiuc_d3field|stanford_robocook_converted_externally_to_rlds)[1-4]")  # one folder, four cameras
CYCLE = 16  # number of shards that as_dataset interleaves
BLOCK = 16  # number of consecutive records that it takes from one shard


@dataclass(frozen=True, kw_only=True)
class OxeArgs(ConversionArgs):
    """Convert a dataset of Open X-Embodiment from RLDS to npz episodes."""

    dataset_name: str = option("fractal20220817_data", "name of the dataset, and of its folder")
    input_path: str = option(REQUIRED, "folder that holds <dataset>/<version>")
    output_path: str = option(REQUIRED, "folder that gets <dataset>/<split>_eps_<number>.npz")
    version: str | None = option(None, "version of the dataset (default: the one that models are trained on)")
    actions: bool = option(
        False, "store actions too; the parts of an action are joined to one vector, in order of their names"
    )


def builder_folder(args: OxeArgs) -> Path:
    family = FAMILY.fullmatch(args.dataset_name)
    name = family[1] if family else args.dataset_name
    folder = Path(args.input_path) / name
    version = args.version or OTHER_VERSIONS.get(name, VERSION)
    if not (folder / version).is_dir():
        found = ", ".join(sorted(path.name for path in folder.glob("*.*.*"))) or "none"
        raise UserError(f"{folder / version}: no such folder; versions there: {found}; see --input_path and --version")
    return folder / version


@dataclass(frozen=True)
class OxeSplit:
    """The jobs of a split, in order. A shard is opened only when its first episode is asked for."""

    name: str
    shards: Sequence[Any]  # paths
    lengths: Sequence[int]  # number of records per shard
    interleaved: bool
    output: Path

    def __len__(self) -> int:
        return sum(self.lengths)

    def __iter__(self) -> Iterator[Job | Skipped]:
        order = interleave(self.lengths, CYCLE if self.interleaved else 1)
        for number, (shard, record) in enumerate(order):
            path, length = Path(self.shards[shard]), self.lengths[shard]
            records, damage = find_some(path)
            if len(records) > length:  # all later episodes would get other numbers
                raise UserError(
                    f"{path}: holds {len(records)} records, dataset_info.json lists {length}; get both again"
                )
            source = f"{path}#{record}"
            if record < len(records):
                yield Job(self.output / f"{self.name}_eps_{number:08d}.npz", source, records[record])
            else:
                reason = damage or f"holds {len(records)} of {length} records that dataset_info.json lists"
                yield Skipped(source, reason)


find_some = lru_cache(maxsize=2 * CYCLE)(find_records)


def interleave(lengths: Sequence[int], cycle: int = CYCLE, block: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Yield (shard, record) in the order of tf.data's ``interleave``.

    A shard that ends within a block is replaced by the next one, which starts in the next round. A shard that ends
    together with its block is replaced one round later.
    """
    waiting = iter(range(len(lengths)))
    slots = [next(waiting, None) for _ in range(cycle)]
    taken = [0] * cycle
    while any(shard is not None for shard in slots):
        for slot, shard in enumerate(slots):
            if shard is None:
                continue
            stop = min(taken[slot] + block, lengths[shard])
            yield from ((shard, record) for record in range(taken[slot], stop))
            if stop < taken[slot] + block:
                slots[slot], taken[slot] = next(waiting, None), 0
            else:
                taken[slot] = stop


@lru_cache
def open_builder(folder: str) -> Any:
    import tensorflow_datasets as tfds
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # hides its advertisements of other packages in every worker
    missing = [name for name in ("dataset_info.json", "features.json") if not (Path(folder) / name).is_file()]
    if missing:
        raise UserError(f"{folder}: no {missing[0]} there; expected the folder of a version of an RLDS dataset")
    try:
        builder = tfds.builder_from_directory(folder)
        file_format = builder.info.file_format.value
    except Exception as error:
        raise UserError(f"{folder}: tensorflow_datasets cannot read this folder ({error}); get it again") from error
    if file_format != "tfrecord":
        raise UserError(f"{folder}: holds {file_format} files; expected tfrecord")
    return builder


@lru_cache
def features_to_read(args: OxeArgs) -> Any:
    """Return the features to decode, without other cameras, which cost time.

    Raises:
        UserError: the episodes have no such camera or no actions.
    """
    import tensorflow_datasets as tfds

    folder, camera = builder_folder(args), dataset_info(args.dataset_name).image_key
    step = open_builder(str(folder)).info.features["steps"].feature
    observations = sorted(step["observation"].items())
    images = [name for name, feature in observations if isinstance(feature, tfds.features.Image)]
    if camera not in images:
        raise UserError(f"{folder}: no camera {camera!r}; there are {', '.join(images) or 'none'}")
    if args.actions and "action" not in step:
        raise UserError(f"{folder}: the steps have no action; convert without actions")
    actions = {"action": step["action"]} if args.actions else {}
    wanted = {"observation": {camera: step["observation"][camera]}, **actions}
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(wanted)})


def read_episode(args: OxeArgs, job: Job) -> dict[str, np.ndarray]:
    """Return the camera's frames (N, H, W, 3) under its name, and actions (N, D) if requested."""
    data, camera = job.place.read(), dataset_info(args.dataset_name).image_key
    try:
        steps = list(features_to_read(args).deserialize_example_np(data)["steps"])
        frames = np.stack([step["observation"][camera] for step in steps])
        actions = [flat(step["action"]) for step in steps] if args.actions else []
        return {camera: frames, **({"action": np.stack(actions)} if actions else {})}
    except Exception as error:  # tensorflow_datasets raises many types for bytes that do not fit the features
        raise UserError(f"{job.source}: no episode as features.json describes it ({error})") from error


def flat(action: Any) -> np.ndarray:
    """Flatten an action to one vector: its numeric parts, in order of their names."""
    if isinstance(action, dict):
        return np.concatenate([flat(action[name]) for name in sorted(action)])
    values = np.asarray(action)
    return values.astype(np.float32).reshape(-1) if values.dtype.kind in "biuf" else np.zeros(0, np.float32)


def run(args: OxeArgs) -> Summary:
    require("tensorflow_datasets")
    info, output = open_builder(str(builder_folder(args))).info, Path(args.output_path) / args.dataset_name
    features_to_read(args)  # or say what is missing, before the first episode
    splits = [
        OxeSplit(name, split.filepaths, split.shard_lengths, not info.disable_shuffling, output)
        for name, split in info.splits.items()
    ]
    return args.convert(splits, partial(read_episode, args), args.dataset_name)


if __name__ == "__main__":
    cli(lambda: print(run(parse(OxeArgs))))
