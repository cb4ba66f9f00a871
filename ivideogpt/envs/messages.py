"""Arrays as bytes on their way between a served environment and its clients: npz files. Knows numpy, and no torch.

Whoever sends them is not trusted: nothing is unpickled, and memory is taken only for bytes that are there.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.formats.npz_arrays import DAMAGE, read_npy_header
from ivideogpt.errors import UserError, first_line

Arrays = dict[str, NDArray[Any]]
MAX_ARRAYS = 32
_DIRECTORY_ENTRY = b"PK\1\2"  # begins what a zip says of one member
_KINDS = "biufU"  # bools, whole and other numbers, texts


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # mypy takes a name for allow_pickle
    return file.getvalue()


def unpack(content: bytes, max_bytes: int) -> Arrays:
    """Read the arrays of an npz file, compressed or not, of ``max_bytes`` at most.

    Raises:
        UserError: it is damaged, larger, or holds other things than numbers and texts.
    """
    try:
        if content.count(_DIRECTORY_ENTRY) > MAX_ARRAYS:  # before zipfile makes an object of each
            raise ValueError(f"more than {MAX_ARRAYS} arrays")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if (claimed := sum(member.file_size for member in members)) > max_bytes:
                raise ValueError(f"{claimed} bytes of arrays, at most {max_bytes} are taken")
            return {member.filename.removesuffix(".npy"): _read(archive, member) for member in members}
    except DAMAGE as error:
        reason = first_line(error)
        raise UserError(f"not an npz file of plain arrays, as numpy.savez writes them: {reason}") from error


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"compression method {member.compress_type}")
    with archive.open(member) as stream:
        content = stream.read(member.file_size)  # without a number, a forged size bounds nothing
    header = io.BytesIO(content)
    shape, fortran_order, dtype = read_npy_header(header)
    start = header.tell()
    if dtype.kind not in _KINDS:
        raise ValueError(f"an array of type {dtype}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(f"an array claims shape {shape}, and has {len(content) - start} bytes")
    flat = np.frombuffer(content, dtype, offset=start).astype(dtype.newbyteorder("="))
    if dtype.kind == "U" and not _are_characters(flat.view(np.uint32)):
        raise ValueError("a text with numbers that are no characters")
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _are_characters(codes: NDArray[np.uint32]) -> bool:
    """Whether all are code points but surrogates: numpy makes strings of any numbers, which fail when encoded."""
    return bool(((codes <= sys.maxunicode) & (codes >> 11 != 0xD800 >> 11)).all())
