"""Convert RoboNet from hdf5 to npz episodes of frames and 5-D actions.

    python datasets/preprocess_robonet.py --hdf5_path hdf5 --save_path data/robonet

writes ``data/robonet/{train,test}/<name>.npz``. Run the same command again to go on after an interruption.
"""

from __future__ import annotations

import io
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.catalog import ROBONET_TEST_LIST
from ivideogpt.data.convert.conversion import ConversionArgs, Job, Summary, keep_settings
from ivideogpt.data.convert.hdf5 import open_hdf5, read_array
from ivideogpt.errors import UserError, cli, require
from ivideogpt.flags import REQUIRED, option, parse

ACTION_DIM = 5  # x, y, z, rotation, gripper


@dataclass(frozen=True, kw_only=True)
class RoboNetArgs(ConversionArgs):
    """Convert RoboNet from hdf5 to npz episodes."""

    hdf5_path: str = option(REQUIRED, "folder that holds the .hdf5 files, also in sub-folders")
    save_path: str = option(REQUIRED, "folder that gets train/ and test/ with <name>.npz")
    test_list: str | None = option(
        None, "file with the names of the test split's .hdf5 files, one a line (default: the published list)"
    )
    no_test_split: bool = option(False, "put every episode into train/")

    def validate(self) -> None:
        if self.test_list is not None and self.no_test_split:
            raise UserError("--test_list names a test split and --no_test_split makes none; give one of them")


def read_names(test_list: str | Path) -> set[str]:
    """Read the names of files, without their endings."""
    try:
        names = {Path(line.strip()).stem for line in Path(test_list).read_text().splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--test_list {test_list}: cannot be read ({error}); expected a text file") from error
    if not names:
        raise UserError(f"--test_list {test_list}: is empty; expected names of .hdf5 files, one a line")
    return names


def find_jobs(args: RoboNetArgs, test: set[str]) -> list[list[Job]]:
    """List the jobs of the training split and of the test split, which holds these names."""
    files = sorted(Path(args.hdf5_path).rglob("*.hdf5"))
    if not files:
        raise UserError(f"--hdf5_path {args.hdf5_path}: no .hdf5 files there")
    missing = test - {path.stem for path in files}
    if missing:
        counts = f"{len(missing)} of the {len(test)} files of the test split"
        print(f"{counts} are not there, {min(missing)} first", file=sys.stderr)
    output = Path(args.save_path)
    jobs = [
        Job(output / ("test" if path.stem in test else "train") / f"{path.stem}.npz", str(path), files=(path,))
        for path in files
    ]
    return [[job for job in jobs if job.output.parent.name == split] for split in ("train", "test")]


def read_episode(job: Job) -> dict[str, np.ndarray]:
    """Read frames (n, H, W, 3) in native size, and the n - 1 actions between them."""
    with open_hdf5(Path(job.source)) as file:
        if file["env"].attrs["n_cams"] < 1:
            raise UserError(f"{job.source}: has no camera")
        frames = read_frames(file["env/cam0_video"], _text(file["env"].attrs["cam_encoding"]))
        states, actions = read_array(file, "env/state"), read_array(file, "policy/actions")
        length = min(len(states), len(frames), len(actions) + 1)
        actions = to_5d(actions[: length - 1], states, file)
    return {"image": frames[:length], "action": actions.astype(np.float32)}


def read_frames(camera: Any, encoding: str) -> np.ndarray:
    """Read frames (N, H, W, 3) in RGB."""
    import av
    from PIL import Image

    if encoding not in ("mp4", "jpg"):
        raise UserError(f"{camera.file.filename}: cameras are encoded as {encoding!r}; expected mp4 or jpg")
    # no attribute stores the number of frames
    names = ["frames"] if encoding == "mp4" else [f"frame{i}" for i in range(len(camera))]
    contents = [io.BytesIO(read_array(camera, name).tobytes()) for name in names]
    try:
        if encoding == "mp4":
            with av.open(contents[0]) as video:
                video.streams.video[0].codec_context.thread_count = 1  # there is a worker for every core
                frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
        else:
            pictures = [Image.open(content, formats=("JPEG", "PNG")).convert("RGB") for content in contents]
            frames = np.stack([np.asarray(picture) for picture in pictures])
    # SyntaxError for some damaged PNG files
    except (av.FFmpegError, ValueError, IndexError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"camera 0 is no readable {encoding} video: {error}") from error
    image_format = _text(camera[names[0]].attrs["image_format"])
    if image_format not in ("RGB", "BGR"):
        raise UserError(f"{camera.file.filename}: image_format is {image_format!r}; expected RGB or BGR")
    return frames[..., ::-1] if image_format == "BGR" else frames


def to_5d(actions: np.ndarray, states: np.ndarray, file: Any) -> np.ndarray:
    """Pad actions (n - 1, D) to (n - 1, 5): a missing gripper from its next state, other missing parts with zero."""
    dim = actions.shape[1]
    if dim >= ACTION_DIM:
        return actions[:, :ACTION_DIM]
    if dim < ACTION_DIM - 1:
        return np.pad(actions, [(0, 0), (0, ACTION_DIM - dim)])
    attributes = file["metadata"].attrs
    if _text(attributes.get("primitives", "")) != "autograsp":  # the gripper closes by itself
        raise UserError("actions have 4 dimensions, which only robots with the primitive 'autograsp' should have")
    # The bounds of its state are attributes of the metadata, or else arrays with a row a step.
    low, high = (
        float((attributes[name] if name in attributes else read_array(file, f"env/{name}")[0])[-1])
        for name in ("low_bound", "high_bound")
    )
    closed = states[1 : len(actions) + 1, -1] > (low + high) / 2
    return np.concatenate([actions, np.where(closed, high, low)[:, None]], axis=1)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def run(args: RoboNetArgs) -> Summary:
    require("h5py", "av")
    test = set() if args.no_test_split else read_names(args.test_list or ROBONET_TEST_LIST)
    splits = find_jobs(args, test)
    checksum = zlib.crc32("\n".join(sorted(test)).encode())
    settings = {"hdf5_path": Path(args.hdf5_path).resolve(), "test_list": f"{len(test)} names, checksum {checksum:08x}"}
    keep_settings(Path(args.save_path), settings)  # with another list, test episodes would be in train/ as well
    return args.convert(splits, read_episode, "RoboNet")


if __name__ == "__main__":
    cli(lambda: print(run(parse(RoboNetArgs))))
