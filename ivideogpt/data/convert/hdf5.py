"""Read HDF5 files of unknown origin; faults become errors that name the file."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.data.formats.npz_arrays import MAX_DEFLATE_RATIO
from ivideogpt.errors import UserError

_HEAP = b"GCOL\x01\0\0\0"


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open an ``h5py.File``. Missing groups or attributes and damage found in the block raise UserError."""
    import h5py

    try:
        status = path.stat()
        _check_heaps(path, status.st_mtime_ns, status.st_size)
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except (OSError, LookupError, ValueError, TypeError, RuntimeError) as error:  # h5py raises each of them
        told = error.args[0] if error.args else type(error).__name__
        raise UserError(f"{path}: truncated, or not the HDF5 file expected here ({told})") from error


def read_array(group: Any, name: str) -> np.ndarray:
    """Read a whole HDF5 dataset."""
    dataset = group[name]
    if not hasattr(dataset, "shape"):
        raise UserError(f"{group.file.filename}: {group.name}/{name} is no array")
    if dataset.nbytes > MAX_DEFLATE_RATIO * dataset.id.get_storage_size():
        raise UserError(f"{group.file.filename}: {group.name}/{name} claims {dataset.nbytes} bytes that are not there")
    return dataset[()]


@lru_cache(maxsize=64)  # a file of thousands of demonstrations is opened for each of them, and looked through once
def _check_heaps(path: Path, modified: int, size: int) -> None:
    """Refuse a file whose heaps of strings do not end: libhdf5 2.0 reads such a heap for ever, and nothing stops it.

    A heap is a signature, its size in bytes and objects (HDF5 file format specification 3.0, III.E). The size of
    object 0, the space that is free, includes its header.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_HEAP)
        while start >= 0:
            place, end = start + 16, start + _number(content[start + 8 : start + 16])
            while place + 16 <= min(end, len(content)):
                index, length = _number(content[place : place + 2]), _number(content[place + 8 : place + 16])
                length = 16 + (length + 7) // 8 * 8 if index else length
                if not 0 < length <= end - place:
                    raise ValueError("a heap of strings is damaged")
                place += length
            start = content.find(_HEAP, start + 1)


def _number(content: bytes) -> int:
    return int.from_bytes(content, "little")
