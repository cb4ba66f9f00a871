"""Convert a LeRobot folder, v3.0 or v2.x, to npz episodes. Needs pyarrow and av, not lerobot.

    python datasets/lerobot_to_npz.py --input_path pusht --output_path data --resize 64

writes ``data/pusht/episode_<number>.npz``, which trains with ``--dataset_path data`` and ``--oxe_data_mixes_type
folder:pusht``. ``--input_path lerobot:lerobot/pusht`` gets it from the Hugging Face hub first. Training can also read
such a folder as it is (``--dataset_path lerobot:pusht``); npz files are read faster. Run the same command again to go
on after an interruption; episodes that are older than their files in ``data/`` and ``videos/`` are converted again.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.catalog import say_pace
from ivideogpt.data.convert.conversion import TEXTS, Job, NpzDatasetArgs, StoredSize, Summary, keep_settings
from ivideogpt.data.formats.lerobot import ONE_NUMBER, SERIES, TASK, LeRobotEpisodes, LeRobotInfo
from ivideogpt.data.formats.lerobot_paths import PREFIX, download, is_hub_id, split_at_folder
from ivideogpt.errors import UserError, cli, require
from ivideogpt.flags import REQUIRED, option, parse

FRAMES_AT_ONCE = 16  # decoded before they are resized


@dataclass(frozen=True, kw_only=True)
class LeRobotArgs(NpzDatasetArgs):
    """Convert a LeRobot folder, v3.0 or v2.x, to npz episodes."""

    input_path: str = option(
        REQUIRED, "folder that holds meta/, data/ and videos/, or lerobot:<org>/<name>[@<revision>] on the hub"
    )
    camera: str | None = option(None, "key of the camera that becomes the array image (default: the first by name)")
    all_cameras: bool = option(False, "store the other cameras too, under the last part of their keys")
    action_key: str | None = option(None, "feature that becomes the array action (default: action, if there is one)")

    @property
    def dataset(self) -> str:
        return self.dataset_name or split_at_folder(self.input_path.removeprefix(PREFIX))[0].resolve().name

    def folder(self) -> Path:
        """Return the folder, after downloading what is not in the hub's cache."""
        folder, choices = split_at_folder(self.input_path.removeprefix(PREFIX))
        if not is_hub_id(folder):
            return Path(self.input_path.removeprefix(PREFIX)).resolve()
        if len(choices) > 1:
            raise UserError(f"--input_path {self.input_path}: expected {PREFIX}<org>/<name>[@<revision>], and --camera")
        return download(str(folder), next(iter(choices), None), None if self.all_cameras else [self.camera])


open_folder = lru_cache(LeRobotEpisodes.open_folder)  # once per process and camera


def name_cameras(info: LeRobotInfo, args: LeRobotArgs) -> dict[str, str]:
    """Return the camera of each frame array, by the array's name."""
    first = info.camera(args.camera).key
    if not args.all_cameras:
        return {"image": first}
    others = {key.rpartition(".")[2]: key for key in info.cameras if key != first}
    taken = {"image", *SERIES, TEXTS} & others.keys()
    if len(others) + 1 < len(info.cameras) or taken:
        raise UserError(f"--all_cameras: the names of {', '.join(info.cameras)} clash; convert one --camera at a time")
    return {"image": first, **others}


def describe(info: LeRobotInfo, arrays: dict[str, str], action_key: str) -> str:
    """Say which feature becomes which array, and which ones are left out."""
    arrays = arrays | ({TEXTS: TASK} if TASK in info.features and info.tasks else {})
    lines = ["arrays: " + ", ".join(f"{name} from {key}" for name, key in arrays.items())]
    others = [key for key in info.numeric if key not in arrays.values()]
    if others:
        lines.append("left out: " + ", ".join(others))
    if "action" not in arrays:
        lines.append(f"{info.no_action(action_key)}; take one of them with --action_key")
    return "\n".join(lines)


def convert_episode(
    folder: Path, cameras: dict[str, str], action_key: str | None, store: StoredSize, job: Job
) -> dict[str, np.ndarray]:
    arrays = {}
    for name, camera in cameras.items():
        episode = open_folder(folder, camera, action_key).numbered(job.place)
        every = np.arange(episode.num_frames)
        parts = np.split(every, every[FRAMES_AT_ONCE::FRAMES_AT_ONCE])
        arrays[name] = np.concatenate([store(episode.read(part)) for part in parts])
    for name in SERIES:
        if (values := episode.series(name)) is not None:
            arrays[name] = values[:, 0] if name in ONE_NUMBER else values
    if (texts := episode.texts()) is not None:
        arrays[TEXTS] = texts
    return arrays


def run(args: LeRobotArgs) -> Summary:
    require("pyarrow", "av")
    folder, output = args.folder(), Path(args.output_path) / args.dataset
    info = LeRobotInfo.load(folder)
    cameras = name_cameras(info, args)
    episodes = open_folder(folder, cameras["image"], args.action_key)
    print(describe(info, cameras | info.series(episodes.action_key), episodes.action_key))
    keep_settings(output, args.noted("action_key") | {"input_path": str(folder), "cameras": cameras})
    # without meta/, which changes with every episode that is recorded
    files = defaultdict[int, list[str]](list)
    for camera in cameras.values():
        recorded = open_folder(folder, camera, args.action_key)
        for index, number in enumerate(recorded.table.number.tolist()):
            files[number] += recorded.files(index)
    jobs = [
        Job(output / f"episode_{number:06d}.npz", episodes.name(index), number, tuple(files[number]))
        for index, number in enumerate(episodes.table.number.tolist())
    ]
    return args.convert([jobs], partial(convert_episode, folder, cameras, args.action_key, args.store), args.dataset)


def main() -> None:
    args = parse(LeRobotArgs)
    print(run(args), args.how_to_train, *say_pace(args.dataset), sep="\n")


if __name__ == "__main__":
    cli(main)
