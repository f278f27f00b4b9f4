"""The IDX reader: values, and its errors for invalid files."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from fastnn.data import DataError, read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.str[1:]]
    header = struct.pack(f">4B{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_reads_every_element_type(tmp_path: Path, code: str, pack) -> None:
    array = np.array([[1, -2, 300], [4, 5, -600]]).astype(np.dtype(code))
    path = tmp_path / "any-name"
    path.write_bytes(pack(idx_bytes(array)))
    read = read_idx(path)
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("shape", [(0,), (0, 28, 28), ()])
def test_reads_empty_and_scalar_files(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "f").write_bytes(idx_bytes(np.zeros(shape, np.uint8)))
    assert read_idx(tmp_path / "f", shape=shape).shape == shape


def test_accepts_the_right_md5_of_the_uncompressed_bytes(tmp_path: Path, images: np.ndarray) -> None:
    data = idx_bytes(images)
    (tmp_path / "f.gz").write_bytes(gzip.compress(data))
    read = read_idx(tmp_path / "f.gz", shape=(2, 3, 4), md5=hashlib.md5(data).hexdigest())
    np.testing.assert_array_equal(read, images)


def bad_files() -> dict[str, tuple[bytes, str]]:
    good = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    packed = gzip.compress(good)
    flipped = bytearray(gzip.compress(bytes(1000) + good))
    flipped[20] ^= 0xFF
    return {
        "empty": (b"", "not an IDX file.*got an empty file"),
        "html": (b"<!DOCTYPE html><html>", r"not an IDX file: expected .* 00 00.*got 3c 21 44 4f"),
        "png": (b"\x89PNG\r\n\x1a\n", "not an IDX file.*got 89 50 4e 47"),
        "unknown type code": (
            b"\0\0\x07\1" + good[4:],
            "not an IDX file.*type code of 08, 09.*got 00 00 07 01",
        ),
        "header cut": (good[:9], "truncated: expected 3 dimension sizes"),
        "body cut": (good[:-1], "truncated: 2 x 3 x 4 uint8 need 24 bytes, got 23"),
        "bytes left over": (good + b"x", "2 x 3 x 4 uint8 need 24 bytes; there are more"),
        "gzip cut": (packed[:-12], "truncated"),
        "gzip without trailer": (packed[:-8], "truncated: the gzip stream ends"),
        "gzip damaged": (bytes(flipped), "damaged gzip stream|not an IDX file"),
        "gzip checksum": (packed[:-8] + bytes(4) + packed[-4:], "damaged gzip stream: CRC"),
        "gzip header only": (packed[:5], "truncated: the gzip stream ends"),
        "other shape": (
            idx_bytes(np.zeros((2, 4, 3), np.uint8)),
            "expected an array of 2 x 3 x 4.*says 2 x 4 x 3",
        ),
        "other content": (
            good[:-1] + b"\0",
            "its md5, uncompressed, should be [0-9a-f]{32}, got [0-9a-f]{32}",
        ),
        "huge header": (
            b"\0\0\x08\3" + b"\xff" * 12,
            "expected an array of 2 x 3 x 4; the header says 4294967295",
        ),
    }


@pytest.mark.parametrize("case", bad_files())
def test_bad_files_are_named_and_explained(tmp_path: Path, images: np.ndarray, case: str) -> None:
    data, message = bad_files()[case]
    path = tmp_path / "suspicious"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        read_idx(path, shape=(2, 3, 4), md5=hashlib.md5(idx_bytes(images)).hexdigest())
    assert str(path) in str(error.value)


def test_a_huge_promise_is_not_believed(tmp_path: Path) -> None:
    """The header promises 2^96 bytes: no memory is allocated for them."""
    (tmp_path / "f").write_bytes(b"\0\0\x08\3" + b"\xff" * 12 + b"abc")
    with pytest.raises(DataError, match="truncated"):
        read_idx(tmp_path / "f")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "nowhere")
