"""RLDS folders as tensorflow_datasets lays them out, of tiny PNG frames that say where they are."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from ivideogpt.data.convert.tfrecords import masked_crc32c

NUM_STEPS = 3
SIZE = (4, 6)


def frame(shard, record, step, camera=0):
    return np.broadcast_to(np.array([shard, record, 10 * camera + step], np.uint8), (*SIZE, 3)).copy()


def write_tfrecords(path: Path, records: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            checksums = (struct.pack("<I", masked_crc32c(content)) for content in (length, data))
            file.write(length + next(checksums) + data + next(checksums))


def example(features: dict[str, list]) -> bytes:
    """A serialized tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_pb2

    message = tf_example_pb2.Example()
    for name, values in features.items():
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(values[0])]
        getattr(message.features.feature[name], kind).value.extend(values)
    return message.SerializeToString()


def png(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_rlds(
    folder: Path,
    splits: dict[str, list[int]],
    cameras=("image",),
    parts: dict[str, int] | None = None,
    text: str | None = "steps/observation/natural_language_instruction",
) -> Path:
    """A builder's folder with these numbers of records in the shards of each split.

    An action is (shard, record, step, 0.5), or in named parts of given sizes. Cameras, parts and the text are nested
    at slashes; the text is one of each step or of the episode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_features(folder, cameras, parts, text)
    info = {"name": folder.parent.name, "version": folder.name, "fileFormat": "tfrecord", "splits": []}
    for split, lengths in splits.items():
        for shard, length in enumerate(lengths):
            path = folder / f"{folder.parent.name}-{split}.tfrecord-{shard:05d}-of-{len(lengths):05d}"
            write_tfrecords(path, [episode(shard, record, cameras, parts, text) for record in range(length)])
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        shard_lengths = [str(length) for length in lengths]
        info["splits"].append({"name": split, "shardLengths": shard_lengths, "filepathTemplate": template})
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def write_features(folder, cameras, parts, text):
    from tensorflow_datasets import features as tf

    image = nested({camera: tf.Image(shape=(*SIZE, 3), encoding_format="png") for camera in cameras})
    texts = nested({text: tf.Text()} if text else {})
    vector = tf.Tensor(shape=(4,), dtype=np.float32)
    step = {
        "observation": {**image, **texts.pop("steps", {}).get("observation", {})},
        "action": nested({name: tf.Tensor(shape=(size,), dtype=np.float32) for name, size in parts.items()})
        if parts
        else vector,
        "is_last": np.bool_,
    }
    tf.FeaturesDict({"steps": tf.Dataset(step), **texts}).save_config(str(folder))


def nested(features: dict) -> dict:
    found = {}
    for path, feature in features.items():
        name, _, below = path.partition("/")
        found[name] = found.get(name, {}) | nested({below: feature}) if below else feature
    return found


def episode(shard, record, cameras, parts, text):
    steps = range(NUM_STEPS)
    features = {
        f"steps/observation/{camera}": [png(frame(shard, record, step, number)) for step in steps]
        for number, camera in enumerate(cameras)
    }
    if text:
        features[text] = [f"pick block {record}".encode()] * (NUM_STEPS if text.startswith("steps/") else 1)
    features["steps/is_last"] = [int(step == NUM_STEPS - 1) for step in steps]
    if parts:
        for name, size in parts.items():
            features[f"steps/action/{name}"] = [float(len(name))] * (size * NUM_STEPS)
    else:
        features["steps/action"] = [float(value) for step in steps for value in (shard, record, step, 0.5)]
    return example(features)
