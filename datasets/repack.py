"""Repack a tree of npz episodes so that clips are read from it fast.

    python datasets/repack.py --input_path data/oxe --output_path data/oxe64 --resize 64

Compressed arrays become uncompressed ones, which allow reading a clip through a memory map; int64 frames become uint8;
``--resize`` resizes frames as training does, rounded to 8 bits. Everything else is copied unchanged into the same
folders, but for arrays of Python objects, which are left out; the originals are not modified. Every folder is a data
set: ``--max_num_episodes`` takes the first of each.

Run the same command again to go on after an interruption, or with ``--verify`` to check existing files by their
checksums and write damaged ones again. An original that is newer than its copy is repacked again.

``--format lance`` appends what training reads of the episodes to Lance tables instead, a data set for each folder, on a
disk or in an object store. Run it again with more episodes to append those that are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.data.catalog import dataset_info, files_by_folder
from ivideogpt.data.convert.conversion import (
    NOTE,
    FrameArgs,
    Job,
    Skipped,
    StoredSize,
    Summary,
    keep_settings,
    write_episode,
)
from ivideogpt.data.convert.lance_writer import append_episodes
from ivideogpt.data.formats.episodes import holds_frames
from ivideogpt.data.formats.npz_arrays import UnfitArray, as_bytes, check_sums, npz_members
from ivideogpt.errors import UserError, cli
from ivideogpt.flags import REQUIRED, option, parse

FORMATS = ("npz", "lance")


@dataclass(frozen=True, kw_only=True)
class RepackArgs(FrameArgs):
    """Repack a tree of npz episodes so that clips are read from it fast."""

    input_path: str = option(REQUIRED, "folder with .npz files at any depth")
    output_path: str = option(
        REQUIRED, "folder, or for lance also a uri, that gets the same files or data sets; not inside input_path"
    )
    format: str = option("npz", "npz files, or Lance tables to which missing episodes are appended", choices=FORMATS)
    verify: bool = option(False, "check existing outputs by their checksums, and write damaged ones again")

    def validate(self) -> None:
        if self.format == "lance" and (self.verify or self.compress):
            flag = "--verify" if self.verify else "--compress"
            raise UserError(f"{flag} is for npz files; check tables with python -m ivideogpt.data validate lance:<uri>")


def remove_damaged(outputs: Iterable[Path]) -> int:
    """Delete the damaged ones of existing outputs, and return their number."""
    num_damaged = 0
    for output in tqdm([path for path in outputs if path.exists()], desc="verify", unit="file"):
        try:
            check_sums(str(output))
        except UserError:
            num_damaged += 1
            output.unlink()
    return num_damaged


def repack(store: StoredSize, compress: bool, job: Job) -> Skipped | str | None:
    """Write a job's file, unless it cannot be read. Arrays of Python objects are left out, and returned as a remark."""
    image_keys = dataset_info(Path(job.source).resolve().parent.name).image_keys
    arrays, left_out = {}, []
    try:
        members = npz_members(job.source)
        for name in members:
            try:
                member = members[name]
            except UnfitArray:
                left_out.append(name)
                continue
            values = member.all()
            is_camera = holds_frames(member, image_keys, values)
            arrays[name] = store(np.ascontiguousarray(as_bytes(values, member))) if is_camera else values
    except (UserError, OSError) as error:
        return Skipped(job.source, str(error))
    if not arrays:
        return Skipped(job.source, "no array that can be read")
    write_episode(job.output, arrays, compress)
    return f"left out, as they hold Python objects: {', '.join(left_out)}" if left_out else None


def run(args: RepackArgs) -> Summary:
    source, output = Path(args.input_path), Path(args.output_path)
    if not source.is_dir():
        raise UserError(f"--input_path {source}: no such folder; expected one with .npz files in it or below")
    folders = files_by_folder(source, {".npz"})  # a data set each
    if not folders:
        raise UserError(f"--input_path {source}: no .npz files in it or below")
    is_local = "://" not in args.output_path
    if is_local and output.resolve().is_relative_to(source.resolve()):  # the next run would take outputs for originals
        raise UserError(f"--output_path {output} is inside --input_path {source}; choose a folder elsewhere")
    if args.format == "lance":
        return append_episodes(folders, args, args.output_path)
    jobs = [
        [Job(output / file.relative_to(source), str(file), files=(file,)) for file in files]
        for files in folders.values()
    ]
    foreign = next((job.output for each in jobs for job in each if job.output.exists()), None)
    if foreign is not None and not (output / NOTE).exists():
        raise UserError(f"{foreign} was not written by this command; choose an empty --output_path")
    keep_settings(output, args.noted("compress"))
    if args.verify:
        num_damaged = remove_damaged(job.output for job in args.own_jobs(jobs) if isinstance(job, Job))
        print(f"{num_damaged} files differed from their checksums")
    return args.run(jobs, partial(repack, args.store, args.compress), "repack")


if __name__ == "__main__":
    cli(lambda: print(run(parse(RepackArgs))))
