"""Read episodes of RLDS datasets written by tensorflow_datasets, without tensorflow.

Episodes are numbered in the order of ``builder.as_dataset(split)`` unshuffled, which interleaves the shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.data.convert.conversion import Job, Skipped
from ivideogpt.data.convert.tfrecords import Record, RecordIndex, find_records
from ivideogpt.errors import UserError

CYCLE = 16  # number of shards that as_dataset interleaves
BLOCK = 16  # number of consecutive records that it takes from one shard


@dataclass(frozen=True)
class RldsContent:
    """The folder of a builder, and the parts of its episodes to read."""

    folder: str
    camera: str
    actions: bool


@dataclass(frozen=True)
class RldsJob(Job):
    record: Record
    content: RldsContent


@dataclass(frozen=True)
class RldsSplit:
    """The jobs of a split, in order. A shard is opened only when its first episode is asked for."""

    name: str
    shards: Sequence[Path]
    lengths: Sequence[int]  # number of records per shard
    interleaved: bool
    content: RldsContent
    output: Path

    def __len__(self) -> int:
        return sum(self.lengths)

    def __iter__(self) -> Iterator[RldsJob | Skipped]:
        order = interleave(self.lengths) if self.interleaved else interleave(self.lengths, cycle=1)
        for number, (shard, record) in enumerate(order):
            yield self._job(number, self.shards[shard], record, self.lengths[shard])

    def _job(self, number: int, shard: Path, record: int, length: int) -> RldsJob | Skipped:
        source, index = f"{shard}#{record}", _index(shard)
        if len(index.records) > length:  # all later episodes would get other numbers
            raise UserError(
                f"{shard}: holds {len(index.records)} records, dataset_info.json lists {length}; get both again"
            )
        if record >= len(index.records):
            reason = index.damage or f"holds {len(index.records)} of {length} records that dataset_info.json lists"
            return Skipped(source, reason)
        output = self.output / f"{self.name}_eps_{number:08d}.npz"
        return RldsJob(output, source, index.records[record], self.content)


@lru_cache(maxsize=2 * CYCLE)
def _index(shard: Path) -> RecordIndex:
    return find_records(shard)


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


def find_splits(content: RldsContent, output: Path) -> list[RldsSplit]:
    """Return the splits of a builder's folder.

    Raises:
        UserError: it is not such a folder, or its episodes have no such camera or no actions.
    """
    builder = _builder(content.folder)
    _features(content)
    return [
        RldsSplit(
            name,
            shards=[Path(path) for path in split.filepaths],
            lengths=split.shard_lengths,
            interleaved=not builder.info.disable_shuffling,
            content=content,
            output=output,
        )
        for name, split in builder.info.splits.items()
    ]


def read_episode(job: RldsJob) -> dict[str, np.ndarray]:
    """Return the camera's frames (N, H, W, 3) under its name, and actions (N, D) if requested."""
    data = job.record.read()
    try:
        steps = list(_features(job.content).deserialize_example_np(data)["steps"])
        frames = np.stack([step["observation"][job.content.camera] for step in steps])
        actions = [_flat(step["action"]) for step in steps] if job.content.actions else []
        arrays = {job.content.camera: frames}
        return {**arrays, "action": np.stack(actions)} if actions else arrays
    except Exception as error:  # tensorflow_datasets raises many types for bytes that do not fit the features
        raise UserError(f"{job.source}: no episode as features.json describes it ({error})") from error


def _flat(action: Any) -> np.ndarray:
    """Flatten an action to one vector: its numeric parts, in order of their names."""
    if isinstance(action, dict):
        return np.concatenate([_flat(action[name]) for name in sorted(action)])
    values = np.asarray(action)
    return values.astype(np.float32).reshape(-1) if values.dtype.kind in "biuf" else np.zeros(0, np.float32)


@lru_cache
def _builder(folder: str) -> Any:
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
def _features(content: RldsContent) -> Any:
    """Return the features to decode, without other cameras, which cost time."""
    import tensorflow_datasets as tfds

    step = _builder(content.folder).info.features["steps"].feature
    observations = sorted(step["observation"].items())
    images = [name for name, feature in observations if isinstance(feature, tfds.features.Image)]
    if content.camera not in images:
        raise UserError(f"{content.folder}: no camera {content.camera!r}; there are {', '.join(images) or 'none'}")
    if content.actions and "action" not in step:
        raise UserError(f"{content.folder}: the steps have no action; convert without actions")
    wanted = {"observation": {content.camera: step["observation"][content.camera]}}
    if content.actions:
        wanted["action"] = step["action"]
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(wanted)})
