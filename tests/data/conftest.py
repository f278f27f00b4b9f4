"""A miniature MNIST: the real file names over tiny contents."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fastnn.data.mnist import MNIST_FILES, IdxFile

TRAIN, TEST = 6, 4


class Miniature(NamedTuple):
    """The descriptions of four tiny files, and their uncompressed bytes by name."""

    files: Sequence[IdxFile]
    content: dict[str, bytes]

    def write(self, directory: Path, *, compressed: bool = True) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in self.content.items():
            if compressed:
                (directory / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (directory / name).write_bytes(data)
        return directory


@pytest.fixture
def miniature() -> Miniature:
    random = np.random.default_rng(0)
    files, content = [], {}
    for file in MNIST_FILES:
        shape = (TRAIN if file.name.startswith("train") else TEST, *file.shape[1:])
        array = random.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8)
        header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
        content[file.name] = header + array.tobytes()
        md5 = hashlib.md5(content[file.name]).hexdigest()
        files.append(IdxFile(file.name, shape, md5))
    return Miniature(files, content)


@pytest.fixture(autouse=True)
def _nowhere_to_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's data, or the network, unless it requests it."""
    monkeypatch.delenv("FASTNN_DATA_DIR", raising=False)
    monkeypatch.setenv("FASTNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FASTNN_MIRRORS", "")
