"""Append npz episodes to Lance tables (layout: ``formats/lance_tables.py``). Knows no other source.

Workers write data files that no version of a table knows yet, each for some episodes. This process then commits them:
first their rows, then their entries in the table of episodes. So whatever an interruption leaves, the table of episodes
names whole episodes only, and the same command goes on. Several commands may append to one table at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ivideogpt.data.catalog import dataset_info
from ivideogpt.data.convert.conversion import FrameArgs, Shard, Skipped, StoredSize, Summary
from ivideogpt.data.convert.workers import worker_pool
from ivideogpt.data.formats.episodes import NpzEpisode, first_readable, open_episode
from ivideogpt.data.formats.lance_tables import (
    EPISODES,
    FRAMES,
    IMAGE,
    SERIES,
    Contents,
    checksum,
    dataset_name,
    episode_schema,
    number_of,
    open_table,
    read_episodes,
    reason,
)
from ivideogpt.errors import UserError, require

_MOST_EPISODES = 256  # in a commit, the work that an interruption loses
_COMMITS_A_WORKER = 4  # at least, if there are few episodes, to share the work evenly
_ALREADY_THERE = "already exists"  # Lance has no type for this error


@dataclass(frozen=True)
class Batch:
    """Episodes of one data set that are committed together."""

    uri: str
    image_keys: tuple[str, ...]
    contents: Contents
    files: tuple[str, ...]


@dataclass
class Written:
    """Data files of a batch that are not committed yet, and the episodes in them, in order."""

    fragments: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def append_episodes(folders: Mapping[Path, Sequence[Path]], args: FrameArgs, output: str) -> Summary:
    """Append the npz files of these folders below ``args.input_path`` to a table for each folder, below ``output``.

    An episode whose name a table has is left as it is.

    Raises:
        UserError: a table there is of another kind or of other frames and arrays, or the output cannot be written; and
            as :meth:`ConversionArgs.convert` says.
    """
    require("lance", extra="lance")
    source, shard = Path(args.input_path), Shard.parse(args.shard)
    listed = [file for files in folders.values() for file in files[: args.max_num_episodes]]
    files = [file for number, file in enumerate(listed) if shard.has(number)]
    with tqdm(total=len(files), desc="append", unit="episode") as bar, worker_pool(args.num_workers) as run:
        summary = Summary(bar, args.on_bad_episode, shard)
        for folder, group in groupby(files, key=lambda file: file.parent):
            below = str(folder.relative_to(source))
            uri = output.rstrip("/") if below == "." else f"{output.rstrip('/')}/{below}"
            batches = _batches(uri, folder, [str(file) for file in group], args, summary)
            for written in run(partial(write_batch, args.store), batches):
                _commit(uri, written)
                for outcome in (*[None] * len(written.names), *written.skipped):
                    summary.add(outcome)
            with suppress(OSError):  # another command compacts it now
                open_table(f"{uri}/{EPISODES}").optimize.compact_files()  # it is read whole at every opening
    summary.check()
    return summary


def _batches(uri: str, folder: Path, files: list[str], args: FrameArgs, summary: Summary) -> Iterator[Batch]:
    """Make the tables if there are none, and yield batches of the episodes that they lack."""
    image_keys = dataset_info(dataset_name(uri)).image_keys
    existing = _begin(uri, first_readable(lambda file: _contents(file, image_keys, args.store), files))
    missing = [file for file in files if Path(file).name not in existing]
    summary.existing += len(files) - len(missing)
    summary.bar.update(len(files) - len(missing))
    size = min(-(-len(missing) // (_COMMITS_A_WORKER * args.num_workers)), _MOST_EPISODES)
    contents = Contents.of_table(uri, open_table(f"{uri}/{FRAMES}").schema)
    for start in range(0, len(missing), max(size, 1)):
        yield Batch(uri, image_keys, contents, tuple(missing[start : start + size]))


def _contents(file: str, image_keys: tuple[str, ...], store: StoredSize) -> Contents:
    episode = open_episode(file, image_keys)
    height, width = store(episode.read(np.zeros(1, np.int64))).shape[1:3]
    series = {name: size for name in SERIES if (size := episode.dimension(name)) is not None}
    return Contents((height, width), series, store.square_crop)


def _begin(uri: str, contents: Contents) -> set[str]:
    """Create the tables, or check those that are there; return the names of the episodes in them."""
    _create(f"{uri}/{FRAMES}", contents.schema())
    _create(f"{uri}/{EPISODES}", episode_schema())
    found = Contents.of_table(f"{uri}/{FRAMES}", open_table(f"{uri}/{FRAMES}").schema)
    if found != contents:
        raise UserError(f"{uri} holds {found}; expected {contents}, as now asked for; choose another --output_path")
    return set(read_episodes(uri)["name"])


def _create(uri: str, schema: Any) -> None:
    import lance

    try:
        lance.write_dataset(schema.empty_table(), uri, mode="create")
    except (OSError, ValueError, RuntimeError) as error:
        if _ALREADY_THERE not in str(error):
            raise _unwritable(uri, error) from error


def write_batch(store: StoredSize, batch: Batch) -> Written:
    """Write the frames of a batch into new data files of its table. A bad episode is left out and listed."""
    import lance
    import pyarrow as pa

    written, schema = Written(), batch.contents.schema()

    def record_batches() -> Iterator[Any]:
        for file in batch.files:
            try:
                columns = _columns(open_episode(file, batch.image_keys), store, batch.contents)
            except (UserError, OSError) as error:
                written.skipped.append(Skipped(file, str(error)))
                continue
            frames, *series = columns
            name, length = Path(file).name, len(frames)
            written.names.append(name)
            written.lengths.append(length)
            written.checksums.append(checksum(frames))
            numbers = np.full(length, number_of(name)), np.arange(length, dtype=np.int32)
            kind, buffers = schema.field(IMAGE).type, [None, pa.py_buffer(frames)]
            image = pa.FixedSizeBinaryArray.from_buffers(kind, length, buffers)
            lists = [pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1]) for rows in series]
            yield pa.record_batch([*map(pa.array, numbers), image, *lists], schema=schema)

    uri = f"{batch.uri}/{FRAMES}"
    try:
        found = lance.fragment.write_fragments(pa.RecordBatchReader.from_batches(schema, record_batches()), uri)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unwritable(uri, error) from error
    written.fragments = [json.dumps(fragment.to_json()) for fragment in found]
    return written


def _columns(episode: NpzEpisode, store: StoredSize, contents: Contents) -> list[np.ndarray]:
    """Return frames and series of an episode; UserError unless they are those of the table."""
    frames = np.ascontiguousarray(store(episode.read(np.arange(episode.num_frames))))
    series = {name: rows for name in SERIES if (rows := episode.series(name)) is not None}
    size = (frames.shape[1], frames.shape[2])
    found = Contents(size, {name: rows.shape[1] for name, rows in series.items()}, store.square_crop)
    if found != contents:
        raise UserError(f"{episode.path}: holds {found}; expected {contents}, as the data set's other episodes")
    return [frames, *series.values()]


def _commit(uri: str, written: Written) -> None:
    """Append a batch's rows to the frames, then its entries to the episodes."""
    import lance
    import pyarrow as pa

    if not written.names:
        return
    fragments = [lance.FragmentMetadata.from_json(fragment) for fragment in written.fragments]
    frames, listed = f"{uri}/{FRAMES}", f"{uri}/{EPISODES}"
    try:
        # Another command may have appended meanwhile: only the version that this commit makes says where its rows are.
        append, version = lance.LanceOperation.Append(fragments), open_table(frames).version
        table = lance.LanceDataset.commit(frames, append, read_version=version)
        ends = table.count_rows() - sum(written.lengths) + np.cumsum(written.lengths)
        columns = [written.names, ends - written.lengths, written.lengths, written.checksums]
        schema = episode_schema()
        arrays = [pa.array(values, kind.type) for values, kind in zip(columns, schema)]
        lance.write_dataset(pa.table(arrays, schema=schema), listed, mode="append")
    except (OSError, ValueError, RuntimeError) as error:
        raise _unwritable(uri, error) from error


def _unwritable(uri: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    advice = "correct --output_path, or what keeps it from being written"
    return UserError(f"{uri}: cannot be written ({reason(error)}); {advice}")
