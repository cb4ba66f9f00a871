"""Read TFRecord files without tensorflow: positions of records, their bytes, and their features.

A record is ``length (8 bytes), its checksum (4), data, its checksum (4)``; a checksum is a masked CRC-32C. Data is
only used after its length and its checksum have been verified.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ivideogpt.errors import UserError

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER_SIZE = _LENGTH.size + _CHECKSUM.size

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_START = struct.pack("<I", 0x641F6454)  # turns a zero register into the initial value 0xFFFFFFFF

Words = NDArray[np.uint32]


@dataclass(frozen=True)
class Record:
    """Position of a record's data."""

    path: str
    offset: int
    length: int

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.length)
            checksum = file.read(_CHECKSUM.size)
        if checksum != _CHECKSUM.pack(masked_crc32c(data)):
            raise UserError(f"{self.path}: the record at byte {self.offset} is damaged (wrong checksum); get it again")
        return data


class RecordIndex(NamedTuple):
    """The records of a file, in order; ``damage`` says why some may be missing."""

    records: tuple[Record, ...]
    damage: str | None


def find_records(path: Path) -> RecordIndex:
    """List the records of a file without reading their data."""
    records: list[Record] = []
    damage = None
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            while (start := file.tell()) < size:
                header = file.read(_HEADER_SIZE)
                length, checksum = header[: _LENGTH.size], header[_LENGTH.size :]
                if checksum != _CHECKSUM.pack(masked_crc32c(length)):
                    damage = f"no record at byte {start}: truncated, damaged or not a TFRecord file"
                    break
                record = Record(str(path), file.tell(), *_LENGTH.unpack(length))
                end = record.offset + record.length + _CHECKSUM.size
                if end > size:
                    damage = f"truncated: the record at byte {start} should end at {end}, the file ends at {size}"
                    break
                records.append(record)
                file.seek(end)
    except OSError as error:
        damage = f"cannot be read ({error.strerror})"
    return RecordIndex(tuple(records), damage)


def parse_example(data: bytes) -> Mapping[str, Sequence[Any]]:
    """Parse a serialized ``tf.train.Example``: return lists of bytes, floats or integers by name."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow_datasets.proto import tf_example_pb2  # tensorflow's messages, compiled without tensorflow

    try:
        features = tf_example_pb2.Example.FromString(data).features.feature
    except DecodeError as error:
        raise UserError(f"not a tf.train.Example ({error})") from error
    kinds = {name: feature.WhichOneof("kind") for name, feature in features.items()}
    return {name: getattr(features[name], kind).value for name, kind in kinds.items() if kind}


def masked_crc32c(data: bytes) -> int:
    checksum = crc32c(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Compute CRC-32C, vectorised: neighbouring words are merged until one is left.

    The register is linear in its input, and zeros leave a zero register unchanged. So the data can be padded with
    zeros in front, and crc(a + b) = crc(a followed by len(b) zeros) xor crc(b).
    """
    content = _START + data
    words = np.frombuffer(bytes(-len(content) % 4) + content, "<u4")
    num_zeros = 4
    while len(words) > 1:
        if len(words) % 2:
            words = np.concatenate([np.zeros(1, words.dtype), words])
        words = _read_zeros(words[0::2], num_zeros) ^ words[1::2]
        num_zeros *= 2
    return int(_read_zeros(words, 4)[0]) ^ 0xFFFFFFFF


def _read_zeros(register: Words, number: int) -> Words:
    """Return the register after ``number`` zero bytes, a power of two."""
    tables = _zero_tables(number)
    result = tables[0][register & 255]
    for i in range(1, 4):
        result ^= tables[i][register >> (8 * i) & 255]
    return result


@cache
def _zero_tables(number: int) -> Words:
    """Return a table (4, 256): the image of each value of each register byte after ``number`` zero bytes."""
    values: Words = np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32))[:, None]
    if number > 1:
        return _read_zeros(_read_zeros(values, number // 2), number // 2)
    for _ in range(8):
        values = np.where(values & 1, values >> 1 ^ np.uint32(_POLYNOMIAL), values >> 1)
    return values
