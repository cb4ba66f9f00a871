"""Convert the data of the visual planning benchmark VP2 from hdf5 to npz episodes.

    python datasets/preprocess_vp2.py --dir_path vp2/robodesk --save_path data/vp2_robodesk

converts every hdf5 file below ``dir_path``, whose path has to say whether it is robodesk or robosuite. Sub-folders are
kept. Run the same command again to go on after an interruption.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.convert.conversion import ConversionArgs, Job, Skipped, Summary, keep_settings
from ivideogpt.data.convert.hdf5 import open_hdf5, read_array
from ivideogpt.errors import UserError, cli, require
from ivideogpt.flags import REQUIRED, option, parse

CAMERAS = {"robodesk": "camera_image", "robosuite": "agentview_shift_2_image"}
MASKS = {"train": "train", "validation": "valid"}  # our name of a split -> its name in the file
DEMO = re.compile(r"(\D{5})(\d+)")
NOISES = {"noise_0.1": "_noise1", "noise_0.2": "_noise2"}  # part of a robodesk file name -> suffix of our folder name


@dataclass(frozen=True, kw_only=True)
class Vp2Args(ConversionArgs):
    """Convert the data of the visual planning benchmark VP2 from hdf5 to npz episodes."""

    dir_path: str = option(REQUIRED, "folder with the .hdf5 files of robodesk or robosuite, also in sub-folders")
    save_path: str = option(REQUIRED, "folder that gets the npz episodes")


def kind_of(path: Path) -> str:
    """Return the simulator that the path names; the last name counts."""
    kinds = [kind for part in path.parts for kind in CAMERAS if kind in part.lower()]
    if not kinds:
        raise UserError(f"{path}: the path has to hold one of {', '.join(CAMERAS)}, to tell which camera to read")
    return kinds[-1]


def find_jobs(path: Path, split: str, output: Path) -> list[Job | Skipped]:
    """List the demonstrations of a file that belong to a split."""
    camera = CAMERAS[kind_of(path)]
    try:
        with open_hdf5(path) as file:
            demos = [name.decode() for name in read_array(file, f"mask/{MASKS[split]}").astype(bytes)]
    except UserError as error:
        return [Skipped(str(path), str(error))]
    return [
        Job(output / f"{split}_eps_{match[1]}{int(match[2]):05d}.npz", f"{path}#{demo}", (path, demo, camera), (path,))
        if (match := DEMO.fullmatch(demo))
        else Skipped(f"{path}#{demo}", "expected five letters and a number, such as demo_12, as its name")
        for demo in demos
    ]


def read_demo(job: Job) -> dict[str, np.ndarray]:
    path, name, camera = job.place
    with open_hdf5(path) as file:
        demo = file[f"data/{name}"]
        return {
            "image": read_array(demo, f"obs/{camera}"),
            "action": read_array(demo, "actions").astype(np.float32),
        }


def run(args: Vp2Args) -> Summary:
    require("h5py")
    source = Path(args.dir_path).resolve()
    files = sorted(source.rglob("*.hdf5"))
    if not files:
        raise UserError(f"--dir_path {source}: no .hdf5 files there")
    splits: dict[str, list[Job | Skipped]] = {split: [] for split in MASKS}
    for path in files:
        noise = [suffix for name, suffix in NOISES.items() if name in path.name and kind_of(path) == "robodesk"]
        folder = Path(args.save_path) / path.parent.relative_to(source)
        for split, jobs in splits.items():
            jobs += find_jobs(path, split, folder / "".join([split, *noise]))
    keep_settings(Path(args.save_path), {"dir_path": source})
    return args.convert(list(splits.values()), read_demo, "VP2")


if __name__ == "__main__":
    cli(lambda: print(run(parse(Vp2Args))))
