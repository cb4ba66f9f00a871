"""Read HDF5 files of unknown origin; faults become errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.data.formats.npz_arrays import MAX_DEFLATE_RATIO
from ivideogpt.errors import UserError


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open an ``h5py.File``. Missing groups or attributes and damage found in the block raise UserError."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except (OSError, LookupError, ValueError, TypeError, RuntimeError) as error:  # h5py raises each of them
        raise UserError(f"{path}: truncated, or not the HDF5 file expected here ({_told(error)})") from error


def read_array(group: Any, name: str) -> np.ndarray:
    """Read a whole HDF5 dataset."""
    dataset = group[name]
    if not hasattr(dataset, "shape"):
        raise UserError(f"{group.file.filename}: {group.name}/{name} is no array")
    if dataset.nbytes > MAX_DEFLATE_RATIO * dataset.id.get_storage_size():
        raise UserError(f"{group.file.filename}: {group.name}/{name} claims {dataset.nbytes} bytes that are not there")
    return dataset[()]


def _told(error: Exception) -> str:
    return str(error.args[0]) if error.args else type(error).__name__
