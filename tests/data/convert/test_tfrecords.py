import struct

import numpy as np
import pytest

from ivideogpt.data.convert.tfrecords import crc32c, find_records, masked_crc32c
from ivideogpt.errors import UserError
from tests.datasets.rlds_folder import write_tfrecords

RECORDS = [b"one", b"", b"three" * 100]


def bit_by_bit(data):
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.fixture
def path(tmp_path):
    write_tfrecords(tmp_path / "file", RECORDS)
    return tmp_path / "file"


def test_checksums_are_those_of_the_standard():
    """RFC 3720's examples, and every length of the last words against the definition."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    data = np.random.default_rng(0).bytes(300)
    for length in [*range(20), 255, 256, 257, 300]:
        assert crc32c(data[:length]) == bit_by_bit(data[:length])
    assert masked_crc32c(struct.pack("<Q", 0)) == 0x07980329  # as in the first bytes of an empty record


def test_records_are_found_and_read(path):
    index = find_records(path)
    assert index.damage is None
    assert [record.read() for record in index.records] == RECORDS


def test_records_in_front_of_a_truncation_are_kept(path):
    path.write_bytes(path.read_bytes()[:-1])
    index = find_records(path)
    assert [record.read() for record in index.records] == RECORDS[:2]
    assert "truncated" in index.damage


def test_a_forged_length_allocates_nothing(path):
    length = struct.pack("<Q", 1 << 62)
    path.write_bytes(length + struct.pack("<I", masked_crc32c(length)) + b"data")
    index = find_records(path)
    assert not index.records
    assert "the file ends at 16" in index.damage


def test_a_changed_byte_is_noticed(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    *others, last = find_records(path).records
    assert [record.read() for record in others] == RECORDS[:2]
    with pytest.raises(UserError, match="wrong checksum"):
        last.read()


@pytest.mark.parametrize("content", [b"some text that is no record", b"short"])
def test_another_kind_of_file_has_no_records(path, content):
    path.write_bytes(content)
    assert find_records(path).damage == "no record at byte 0: truncated, damaged or not a TFRecord file"


def test_tensorflow_reads_the_same(path):
    tf = pytest.importorskip("tensorflow")
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(path))] == RECORDS
