"""Reader of IDX files, the format of MNIST.

The format (http://yann.lecun.com/exdb/mnist/): two zero bytes, one byte for the element type, one for the
number of dimensions, each dimension as a big-endian uint32, then the elements, big-endian, last dimension
fastest.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from fastnn.data.dataset import DataError

_ELEMENT_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"
_PIECE = 1 << 20


def read_idx(
    path: str | Path, *, shape: tuple[int, ...] | None = None, md5: str | None = None
) -> npt.NDArray[Any]:
    """Read one IDX file, plain or gzip-compressed (recognised by its first bytes, not by its name).

    Args:
        path: the file.
        shape: the dimensions it must have, if known.
        md5: the hexadecimal md5 of the *uncompressed* bytes, if known.

    Returns:
        An array of the file's dimensions and element type, in the machine's byte order.

    Raises:
        DataError: the file is not IDX, is truncated, has bytes left over, or differs from ``shape`` or
            ``md5``; the message names the file, what was expected and what was found.
        OSError: the file cannot be opened or read.
    """
    path = Path(path)
    with open(path, "rb") as raw:
        compressed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        if not compressed:
            return _parse(path, raw, shape, md5)
        try:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                return _parse(path, cast(BinaryIO, unpacked), shape, md5)
        except EOFError:
            raise DataError(f"{path}: truncated: the gzip stream ends before its end marker") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip stream: {error}") from None


def _parse(path: Path, file: BinaryIO, shape: tuple[int, ...] | None, md5: str | None) -> npt.NDArray[Any]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _ELEMENT_TYPES:
        raise DataError(
            f"{path}: not an IDX file: expected it to start with 00 00, a type code of "
            f"{', '.join(f'{code:02x}' for code in _ELEMENT_TYPES)} and the number of dimensions, "
            f"got {magic.hex(' ') or 'an empty file'}"
        )
    dimensions = magic[3]
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(f"{path}: truncated: expected {dimensions} dimension sizes; the file ends among them")
    found = tuple(int(size) for size in np.frombuffer(sizes, dtype=">u4"))
    if shape is not None and found != shape:
        raise DataError(f"{path}: expected an array of {_by(shape)}; the header says {_by(found)}")
    dtype = np.dtype(_ELEMENT_TYPES[magic[2]])
    expected = math.prod(found) * dtype.itemsize
    body = _read(file, expected)
    if len(body) < expected:
        raise DataError(
            f"{path}: truncated: {_by(found)} {dtype.name} need {expected} bytes, got {len(body)}"
        )
    if file.read(1):
        raise DataError(f"{path}: {_by(found)} {dtype.name} need {expected} bytes; there are more")
    if md5 is not None:
        digest = hashlib.md5(magic + sizes, usedforsecurity=False)
        digest.update(body)
        if digest.hexdigest() != md5:
            raise DataError(
                f"{path}: well-formed, but not the expected file: its md5, uncompressed, should be {md5}, "
                f"got {digest.hexdigest()}"
            )
    return np.frombuffer(body, dtype=dtype).reshape(found).astype(dtype.newbyteorder("="), copy=False)


def _read(file: BinaryIO, size: int) -> bytearray:
    """At most `size` bytes, in pieces: memory is taken for what is there, not for what a header promises."""
    data = bytearray()
    while piece := file.read(min(_PIECE, size - len(data))):
        data += piece
    return data


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "0 dimensions"
