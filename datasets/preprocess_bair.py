"""Convert BAIR robot pushing (softmotion) from tfrecords to npz episodes. Needs tensorflow_datasets, not tensorflow.

    python datasets/preprocess_bair.py --input_path softmotion30_44k --save_path data/bair

reads ``softmotion30_44k/{train,test}/traj_<first>_to_<last>.tfrecords`` and writes
``data/bair/{train,test}/traj_<number>.npz``. Run the same command again to go on after an interruption.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.convert.conversion import ConversionArgs, Job, Skipped, Summary, keep_settings
from ivideogpt.data.convert.tfrecords import find_records, parse_example
from ivideogpt.errors import UserError, cli, require
from ivideogpt.flags import REQUIRED, option, parse
from ivideogpt.video_io import side_by_side, write_gif

SPLITS = ("train", "test")
FILE = re.compile(r"traj_(\d+)_to_(\d+)\.tfrecords")
SIZE = 64
ACTION_DIM = 4


@dataclass(frozen=True, kw_only=True)
class BairArgs(ConversionArgs):
    """Convert BAIR robot pushing (softmotion) from tfrecords to npz episodes."""

    input_path: str = option(REQUIRED, "folder that holds train/ and test/ with traj_<first>_to_<last>.tfrecords")
    save_path: str = option(REQUIRED, "folder that gets train/ and test/ with traj_<number>.npz")
    save_gif: bool = option(False, "write both cameras as a GIF beside each episode")


def find_jobs(folder: Path, output: Path) -> list[Job | Skipped]:
    """List the trajectories of a split, numbered from the first number in their file's name."""
    files = {int(match[1]): path for path in folder.glob("*") if (match := FILE.fullmatch(path.name))}
    jobs: list[Job | Skipped] = []
    for first, path in sorted(files.items()):
        records, damage = find_records(path)
        for i, record in enumerate(records):
            jobs.append(Job(output / f"traj_{first + i:05d}.npz", f"{path}#{i}", record, (path,)))
        if damage:
            jobs.append(Skipped(str(path), f"only {len(records)} trajectories found: {damage}"))
    return jobs


def read_trajectory(save_gif: bool, job: Job) -> dict[str, np.ndarray]:
    features = parse_example(job.place.read())
    length = sum(name.endswith("/image_main/encoded") for name in features)
    try:
        actions = np.array([features[f"{i}/action"] for i in range(length)], np.float32)
        arrays = {
            "image": _frames(features, "image_main", length),
            "aux1_image": _frames(features, "image_aux1", length),
            "action": actions.reshape(length, ACTION_DIM),
        }
    except (KeyError, ValueError, TypeError) as error:
        expected = f"frames of {SIZE}x{SIZE} and {ACTION_DIM}-D actions"
        raise UserError(f"{job.source}: no trajectory with {expected} ({error})") from error
    if save_gif:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        write_gif(job.output.with_suffix(".gif"), side_by_side((arrays["image"], arrays["aux1_image"])))
    return arrays


def _frames(features: Mapping[str, Sequence[Any]], camera: str, length: int) -> np.ndarray:
    pixels = b"".join(features[f"{i}/{camera}/encoded"][0] for i in range(length))
    return np.frombuffer(pixels, np.uint8).reshape(length, SIZE, SIZE, 3)


def run(args: BairArgs) -> Summary:
    require("tensorflow_datasets")
    source, output = Path(args.input_path), Path(args.save_path)
    splits = [find_jobs(source / split, output / split) for split in SPLITS]
    if not any(splits):
        raise UserError(f"--input_path {source}: no {{train,test}}/traj_<first>_to_<last>.tfrecords there")
    keep_settings(output, {"input_path": source.resolve()})
    return args.convert(splits, partial(read_trajectory, args.save_gif), "BAIR")


if __name__ == "__main__":
    cli(lambda: print(run(parse(BairArgs))))
