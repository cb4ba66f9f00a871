"""The command that makes npz episodes of what a robot recorded, by the form of the recordings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ivideogpt.commands.train_robot import RobotArgs
from ivideogpt.data.catalog import files_below, is_public
from ivideogpt.data.convert.action_files import SUFFIXES as TABLES
from ivideogpt.data.formats.lerobot_paths import PREFIX as LEROBOT
from ivideogpt.data.formats.video_files import SUFFIXES as VIDEOS
from ivideogpt.errors import UserError
from ivideogpt.files import file_stem

Words = tuple[object, ...]


@dataclass(frozen=True)
class Conversion:
    """A command that makes episodes of the input.

    Attributes:
        command: words after ``python``.
        expected: lists the files of episodes that it makes of the input as it is now. None where episodes are known by
            numbers, so that none can be taken out.
    """

    command: Words
    expected: Callable[[], set[Path]] | None = None


def flags(**named: object) -> Words:
    """Return ``--name value`` of all that are given; None is not given."""
    return tuple(word for name, value in named.items() if value is not None for word in (f"--{name}", value))


def conversion(args: RobotArgs, output: Path, resolution: int) -> Conversion:
    """Return the command that converts the input to episodes in ``<output>/<data set>``.

    Raises:
        UserError: there is nothing that one of the converters reads, or it would be called like a public data set.
    """
    if args.recordings is not None:
        if not Path(args.recordings).is_dir():
            raise UserError(f"--recordings {args.recordings}: no such folder; expected one of videos")
        chosen = flags(skipped_actions=args.skipped_actions, action_offset=args.action_offset)
        chosen += flags(fps=args.fps, action_columns=args.action_columns)
        name = dataset_name(args)
        named = flags(input_path=args.recordings, output_path=output, dataset_name=name, resize=resolution)
        listing = partial(episodes_of_videos, Path(args.recordings), output / name)
        return Conversion(("datasets/videos_to_npz.py", *named, *chosen), listing)
    source, given = Path(args.source), flags(input_path=args.source, action_key=args.action_key)
    if args.source.startswith(LEROBOT) or (source / "meta" / "info.json").is_file():
        named = flags(output_path=output, dataset_name=dataset_name(args), resize=resolution, camera=args.camera)
        return Conversion(("datasets/lerobot_to_npz.py", *given, *named))
    if any(source.glob("features.json")) or any(source.glob("*/features.json")):
        # its own name stays: it tells the cameras and paces of public data sets
        named = flags(output_path=output, image_key=args.camera)
        return Conversion(("datasets/oxe_data_converter.py", *given, "--actions", *named))
    if not source.is_dir():
        expected = "lerobot:<folder or hub id>, a folder of RLDS, or one of .npz episodes"
        raise UserError(f"--dataset {args.source}: no such folder; expected {expected}")
    if inside := sorted(path.parents[1].name for path in source.glob("*/*/features.json")):
        raise UserError(f"--dataset {args.source}: holds several of RLDS; name one, such as {source / inside[0]}")
    if args.camera is not None or args.action_key is not None:
        raise UserError("--camera and --action_key do nothing for .npz episodes, whose arrays are image and action")
    folder = output / dataset_name(args) if any(source.glob("*.npz")) else output
    named = flags(input_path=args.source, output_path=folder, resize=resolution)
    return Conversion(("datasets/repack.py", *named), partial(copies, source, folder))


def episodes_of_videos(recordings: Path, folder: Path) -> set[Path]:
    """Return the files in ``folder`` of all videos; of those with a table of actions, if there are tables."""
    videos, tables = (
        {"_".join(path.relative_to(recordings).with_suffix("").parts) for path in files_below(recordings, suffixes)}
        for suffixes in (VIDEOS, TABLES)
    )
    return {folder / f"{name}.npz" for name in (videos & tables if tables else videos)}


def copies(source: Path, folder: Path) -> set[Path]:
    return {folder / path.relative_to(source) for path in files_below(source, {".npz"})}


def dataset_name(args: RobotArgs) -> str:
    """Return the name of the data set, of whose folder the data commands need that it is not hidden or nested.

    Raises:
        UserError: it is a public data set's, and the input is another one.
    """
    name = file_stem(args.robot)
    if is_public(name) and (args.recordings is not None or name != file_stem(args.own_name)):
        taken = "whose pace and camera training would take for those of yours"
        raise UserError(f"{name} is the name of a public data set, {taken}: choose another with --name")
    return name
