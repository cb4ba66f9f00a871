"""Convert a dataset from RLDS, the format of Open X-Embodiment, to npz episodes. Needs tensorflow_datasets alone.

    python datasets/oxe_data_converter.py --dataset_name bridge --input_path OXE --output_path data/oxe --actions

reads ``OXE/bridge/0.1.0`` and writes ``data/oxe/bridge/<split>_eps_<number>.npz`` with the frames of the camera that
models are trained on, and the instruction of each frame, if there are some, as ``language_instruction``. For a dataset
that is not in our table, ``--image_key`` names the camera. Episodes are numbered
in the order of ``builder.as_dataset(split)`` unshuffled, which interleaves the shards. Episodes of a missing shard are
skipped, and leave their numbers free; a missing split is named. Run the same command again to go on after an
interruption.
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

from ivideogpt.data.catalog import dataset_info, is_known
from ivideogpt.data.convert.conversion import TEXTS, ConversionArgs, Job, Skipped, Summary, keep_settings
from ivideogpt.data.convert.tfrecords import find_records
from ivideogpt.errors import UserError, cli, require
from ivideogpt.flags import REQUIRED, option, parse

PUBLISHED_VERSION = "0.1.0"
OTHER_PUBLISHED = {"robo_net": "1.0.0", "cmu_playing_with_food": "1.0.0", "language_table": "0.0.1"}
VERSION = re.compile(r"\d+\.\d+\.\d+")
FAMILY = re.compile(r"(uiuc_d3field|stanford_robocook_converted_externally_to_rlds)[1-4]")  # one folder, four cameras
CYCLE = 16  # number of shards that as_dataset interleaves
BLOCK = 16  # number of consecutive records that it takes from one shard
STEPS, OBSERVATION, ACTION = "steps/", "observation/", "action"
STEP_FACTS = ("is_first", "is_last", "is_terminal", "reward", "discount")  # numbers of a step that are no action


@dataclass(frozen=True, kw_only=True)
class OxeArgs(ConversionArgs):
    """Convert a dataset from RLDS to npz episodes."""

    dataset_name: str | None = option(
        None,
        "name of the dataset and of the output (default: the folder's; in a folder of datasets, fractal20220817_data)",
    )
    input_path: str = option(REQUIRED, "folder of a version, of a dataset <dataset>/<version>, or of datasets")
    output_path: str = option(REQUIRED, "folder that gets <dataset>/<split>_eps_<number>.npz")
    version: str | None = option(
        None, "version of the dataset (default: the one that models are trained on, if it is there, else the newest)"
    )
    image_key: tuple[str, ...] | None = option(
        None,
        "cameras below observation, with a/b for nested ones; training reads the first, the others are stored under "
        "their names (default: the camera that models are trained on, or the only one)",
    )
    actions: bool = option(
        False, "store actions too; the parts of an action are joined to one vector, in order of their names"
    )
    action_key: str | None = option(
        None, "store this feature of the steps as the action, with a/b for nested ones (default with --actions: action)"
    )


# ---- which folder, and which features


def locate(args: OxeArgs) -> tuple[str, Path]:
    """Return the dataset's name, and the folder of the version to convert."""
    given = Path(args.input_path)
    own_name = given.resolve().name
    if VERSION.fullmatch(own_name) or (given / "features.json").is_file():
        if args.version not in (None, own_name):
            raise UserError(f"{given}: is not version {args.version}; leave out --version, or give the folder above")
        parent = given.resolve().parent.name
        return args.dataset_name or (parent if VERSION.fullmatch(own_name) else own_name), given
    if versions(given):
        name, folder = args.dataset_name or own_name, given
    else:
        name = args.dataset_name or "fractal20220817_data"
        family = FAMILY.fullmatch(name)
        folder = given / (family[1] if family else name)
    found = versions(folder)
    if not found:
        known = [path.name for path in sorted(given.glob("*")) if versions(path)]
        listed = ", ".join(known) or "none"
        raise UserError(f"{folder}: no dataset; those in {given}: {listed}; see --input_path and --dataset_name")
    published = OTHER_PUBLISHED.get(name, PUBLISHED_VERSION)
    version = args.version or (published if is_known(name) and published in found else found[-1])
    if version not in found:
        raise UserError(
            f"{folder / version}: no such folder; versions there: {', '.join(found)}; see --input_path and --version"
        )
    return name, folder / version


def versions(folder: Path) -> list[str]:
    """List the versions in a dataset's folder, the newest last."""
    names = [path.name for path in folder.glob("*.*.*") if VERSION.fullmatch(path.name)]
    return sorted(names, key=lambda name: tuple(map(int, name.split("."))))


@dataclass(frozen=True)
class Reading:
    """Features of a step that are read, and the arrays that they become. Pickled to worker processes."""

    folder: str
    cameras: tuple[tuple[str, str], ...]  # (array, feature)
    actions: tuple[str, ...]  # features that are joined in this order
    text: str | None  # feature of the example, which is below its steps or not

    @property
    def features(self) -> tuple[str, ...]:
        return (*(feature for _, feature in self.cameras), *self.actions)

    def __str__(self) -> str:
        known = step_features(self.folder)
        lines = ["arrays: " + ", ".join(f"{array} from {feature}" for array, feature in self.cameras)]
        if self.actions:
            parts = ", ".join(f"{feature} {known[feature].shape}" for feature in self.actions)
            lines[0] += f", action from {parts}" + ", joined in this order" * (len(self.actions) > 1)
        lines[0] += "" if self.text is None else f", {TEXTS} from {self.text.removeprefix(STEPS)}"
        others = [key for key in cameras_in(known) if OBSERVATION + key not in self.features]
        others += ["reward"] if "reward" in known else []
        others += [] if self.actions else ["actions, which --actions or --action_key store"]
        return "\n".join(lines + [f"left out: {', '.join(others)}"] * bool(others))


def choose_features(args: OxeArgs, name: str, folder: Path) -> Reading:
    """Choose cameras and actions by the flags, else by the table of datasets, else the only camera.

    Raises:
        UserError: there is no such feature, or none can be chosen; the message lists those there are.
    """
    known, usual = step_features(str(folder)), dataset_info(name).image_key
    cameras, numbers = cameras_in(known), numbers_in(known)
    keys = args.image_key or ((usual,) if usual in cameras or len(cameras) != 1 else tuple(cameras))
    action_key = args.action_key or (ACTION if args.actions else None)
    actions = [path for path in numbers if action_key and f"{path}/".startswith(f"{action_key}/")]
    absent = [f"camera {key!r}: choose with --image_key" for key in keys if key not in cameras]
    absent += [f"action {action_key!r} of numbers: choose with --action_key"] if action_key and not actions else []
    if absent:
        listed = [", ".join(f"{key} {feature.shape}" for key, feature in cameras.items()) or "none"]
        listed += [", ".join(f"{key} {each.shape} {each.np_dtype}" for key, each in numbers.items()) or "none"]
        raise UserError(f"{folder}: no {absent[0]}; cameras there: {listed[0]}; actions: {listed[1]}")
    arrays = [usual, *(key.replace("/", "_") for key in keys[1:])]
    if len({*arrays, ACTION}) <= len(arrays):
        raise UserError(f"--image_key {' '.join(keys)}: the arrays {', '.join(arrays)} clash; name other cameras")
    cameras_read = tuple(zip(arrays, [OBSERVATION + key for key in keys]))
    return Reading(str(folder), cameras_read, tuple(actions), find_text(str(folder)))


def step_features(folder: str) -> dict[str, Any]:
    """Return the features of a step by their paths, such as observation/image, sorted."""
    below = {path: each for path, each in example_features(folder).items() if path.startswith(STEPS)}
    return {path.removeprefix(STEPS): each for path, each in below.items()}


@lru_cache
def example_features(folder: str) -> dict[str, Any]:
    """Return the features of an episode by their paths, such as steps/observation/image, sorted."""
    from tensorflow_datasets import features as tf

    def leaves(feature: Any, path: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(feature, tf.FeaturesDict):
            yield path, feature
            return
        for name in sorted(feature.keys()):
            yield from leaves(feature[name], f"{path}/{name}".lstrip("/"))

    features = dict(open_builder(folder).info.features)
    steps = features.pop("steps", None)
    if not isinstance(steps, tf.Dataset):
        raise UserError(f"{folder}: its examples have no steps; expected episodes in RLDS, as features.json describes")
    others = [pair for name in sorted(features) for pair in leaves(features[name], name)]
    return dict([*leaves(steps.feature, "steps"), *others])


def find_text(folder: str) -> str | None:
    """Return the path of the feature that holds the instruction of each step, else of the episode; None without one."""
    from tensorflow_datasets import features as tf

    texts = [path for path, each in example_features(folder).items() if isinstance(each, tf.Text)]
    return next((path for path in texts if path.rpartition("/")[2] in (TEXTS, f"natural_{TEXTS}")), None)


def cameras_in(known: dict[str, Any]) -> dict[str, Any]:
    """Return the features of frames (H, W, 3) in uint8, by their paths below observation."""
    frames = {path: each for path, each in known.items() if path.startswith(OBSERVATION) and is_tensor(each)}
    return {
        path.removeprefix(OBSERVATION): each
        for path, each in frames.items()
        if len(each.shape) == 3 and each.shape[2] == 3 and each.np_dtype == np.uint8
    }


def numbers_in(known: dict[str, Any]) -> dict[str, Any]:
    """Return the features of numbers that may be an action."""
    frames = {OBSERVATION + key for key in cameras_in(known)}
    others = {path: each for path, each in known.items() if path not in frames and path not in STEP_FACTS}
    return {path: each for path, each in others.items() if is_tensor(each) and each.np_dtype.kind in "biuf"}


def is_tensor(feature: Any) -> bool:
    from tensorflow_datasets import features as tf

    return isinstance(feature, tf.Tensor | tf.Image) and isinstance(feature.np_dtype, np.dtype)


# ---- episodes


@dataclass(frozen=True)
class OxeSplit:
    """The jobs of a split, in order. A shard is opened only when its first episode is asked for."""

    name: str
    shards: Sequence[Path]
    lengths: Sequence[int]  # number of records per shard
    absent: frozenset[int]  # shards without a file, as after a partial download
    interleaved: bool
    output: Path

    def __len__(self) -> int:
        return sum(self.lengths)

    @property
    def missing(self) -> str:
        """Say what is missing; empty if nothing is."""
        if not self.absent:
            return ""
        files, episodes = f"{len(self.absent)} of {len(self.shards)}", sum(self.lengths[shard] for shard in self.absent)
        return (
            f"missing: {files} files of split {self.name}, with {episodes} of {sum(self.lengths)} episodes; the first: "
            f"{self.shards[min(self.absent)].name}"
        )

    def __iter__(self) -> Iterator[Job | Skipped]:
        order = interleave(self.lengths, CYCLE if self.interleaved else 1)
        for number, (shard, record) in enumerate(order):
            path, length = self.shards[shard], self.lengths[shard]
            if shard in self.absent:
                yield Skipped(f"{path}#{record}", "no such file; get it")
                continue
            records, damage = find_some(path)
            if len(records) > length:  # all later episodes would get other numbers
                raise UserError(
                    f"{path}: holds {len(records)} records, dataset_info.json lists {length}; get both again"
                )
            source = f"{path}#{record}"
            if record < len(records):
                yield Job(self.output / f"{self.name}_eps_{number:08d}.npz", source, records[record], (path,))
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
def features_to_read(reading: Reading) -> Any:
    """Return the features to decode, without others, such as more cameras, which cost time."""
    from tensorflow_datasets import features as tf

    wanted: dict[str, Any] = {}
    for path in (*(STEPS + path for path in reading.features), *([reading.text] if reading.text else [])):
        *above, name = path.split("/")
        inner = wanted
        for part in above:
            inner = inner.setdefault(part, {})
        inner[name] = example_features(reading.folder)[path]
    return tf.FeaturesDict(wanted | {"steps": tf.Dataset(wanted["steps"])})


def read_episode(reading: Reading, job: Job) -> dict[str, np.ndarray]:
    """Return the frames (N, H, W, 3) of each camera, instructions (N,) if there are some, actions (N, D) if wanted."""
    data = job.place.read()
    try:
        example = features_to_read(reading).deserialize_example_np(data)
        steps = list(example["steps"])
        arrays = {array: np.stack([value(step, path) for step in steps]) for array, path in reading.cameras}
        if reading.actions:
            parts = [[value(step, path) for path in reading.actions] for step in steps]
            arrays["action"] = np.stack([np.concatenate([flat(part) for part in step]) for step in parts])
        if reading.text is not None:
            texts = [value({**example, "steps": step}, reading.text) for step in steps]
            arrays[TEXTS] = np.array([text.decode(errors="replace") for text in texts])
        return arrays
    except Exception as error:  # tensorflow_datasets raises many types for bytes that do not fit the features
        raise UserError(f"{job.source}: no episode as features.json describes it ({error})") from error


def value(step: Any, path: str) -> Any:
    for name in path.split("/"):
        step = step[name]
    return step


def flat(part: Any) -> np.ndarray:
    return np.asarray(part).astype(np.float32).reshape(-1)


def find_splits(folder: Path, output: Path) -> list[OxeSplit]:
    """Return the splits of which files are there, and print what is missing.

    Raises:
        UserError: no file is there.
    """
    info, splits = open_builder(str(folder)).info, []
    for name, split in info.splits.items():
        shards = [Path(path) for path in split.filepaths]
        absent = frozenset(number for number, path in enumerate(shards) if not path.is_file())
        splits.append(OxeSplit(name, shards, split.shard_lengths, absent, not info.disable_shuffling, output))
    missing = [split.missing for split in splits if split.missing]
    present = [split for split in splits if len(split.absent) < len(split.shards)]
    if not present:
        raise UserError(f"{folder}: none of the files that dataset_info.json names; get them ({'; '.join(missing)})")
    print(*missing, sep="\n", end="\n" * bool(missing))
    return present


def run(args: OxeArgs) -> Summary:
    require("tensorflow_datasets")
    name, folder = locate(args)
    output = Path(args.output_path) / name
    reading = choose_features(args, name, folder)
    print(f"{name}: {folder}", reading, sep="\n")
    splits = find_splits(folder, output)
    settings = {"input_path": folder.resolve(), "version": folder.resolve().name}
    keep_settings(output, settings | {"cameras": reading.cameras, "actions": reading.actions})
    return args.convert(splits, partial(read_episode, reading), name)


if __name__ == "__main__":
    cli(lambda: print(run(parse(OxeArgs))))
