"""The four files of MNIST: where to look for them, how to download them, what they must contain."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastnn._cache import cache_dir
from fastnn.data.dataset import DataError, Dataset
from fastnn.data.download import download
from fastnn.data.idx import read_idx

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
"""Addresses up to the file's name; ``$FASTNN_MIRRORS`` (separated by blanks) replaces them."""


@dataclass(frozen=True)
class IdxFile:
    """One file: its name without ``.gz``, its dimensions, and the md5 of its uncompressed bytes."""

    name: str
    shape: tuple[int, ...]
    md5: str


MNIST_FILES = (
    IdxFile("train-images-idx3-ubyte", (60000, 28, 28), "6bbc9ace898e44ae57da46a324031adb"),
    IdxFile("train-labels-idx1-ubyte", (60000,), "a25bea736e30d166cdddb491f175f624"),
    IdxFile("t10k-images-idx3-ubyte", (10000, 28, 28), "2646ac647ad5339dbf082846283269ea"),
    IdxFile("t10k-labels-idx1-ubyte", (10000,), "27ae3e4e09519cfbb04c329615203637"),
)
"""Training images, training labels, test images, test labels, in this order."""

# Over the 47,040,000 pixels of the 60,000 training images, in units of a pixel (0 to 255).
_MEAN, _STD = 33.318421, 78.567490


class MnistUnavailableError(DataError):
    """No directory that was searched holds MNIST, and no mirror gave it."""


def mirrors() -> Sequence[str]:
    """The mirrors in use: ``$FASTNN_MIRRORS`` where it is set (empty: none), else the built-in ones."""
    own = os.environ.get("FASTNN_MIRRORS")
    return MIRRORS if own is None else own.split()


def load_mnist(
    data_dir: str | Path | None,
    notify: Callable[[str], None],
    *,
    files: Sequence[IdxFile] = MNIST_FILES,
) -> Dataset:
    """Read MNIST from ``data_dir`` or else ``$FASTNN_DATA_DIR``; with neither, from the cache or the mirrors.

    A directory that was named is the only place looked in. A bad file in the cache is downloaded again.

    Raises:
        DataError: the named directory lacks a file or holds a bad one.
        MnistUnavailableError: found nowhere; the message tells what was tried.
    """
    if data_dir is not None:
        return _from_directory(Path(data_dir), files)
    if environment := os.environ.get("FASTNN_DATA_DIR"):
        try:
            return _from_directory(Path(environment), files)
        except DataError as error:
            raise DataError(f"FASTNN_DATA_DIR is set: {error}") from None
    try:
        cache = cache_dir() / "mnist"
    except RuntimeError as error:
        raise MnistUnavailableError(str(error)) from None
    if not _lacking(cache, files):
        try:
            return _from_directory(cache, files)
        except (DataError, OSError) as error:
            notify(f"the cached copy is bad and is downloaded again: {error}")
    for file in files:
        _fetch(cache, file)
    return _from_directory(cache, files)


def _from_directory(directory: Path, files: Sequence[IdxFile]) -> Dataset:
    if lacking := _lacking(directory, files):
        raise DataError(f"{directory}: expected the MNIST files, plain or as .gz; lacks {', '.join(lacking)}")
    arrays = [read_idx(locate(directory, file), shape=file.shape, md5=file.md5) for file in files]
    train_images, train_labels, test_images, test_labels = arrays
    return Dataset(
        name="mnist",
        source=str(directory),
        height=train_images.shape[1],
        width=train_images.shape[2],
        classes=10,
        white=255,
        mean=_MEAN,
        std=_STD,
        train_images=train_images.reshape(len(train_images), -1),
        train_labels=train_labels.astype(np.int64),
        test_images=test_images.reshape(len(test_images), -1),
        test_labels=test_labels.astype(np.int64),
    )


def locate(directory: Path, file: IdxFile) -> Path:
    """Where ``directory`` has the file if it does: uncompressed, else as .gz."""
    plain = directory / file.name  # os.path.isfile raises no error where the directory may not be searched
    return plain if os.path.isfile(plain) else directory / f"{file.name}.gz"


def _lacking(directory: Path, files: Sequence[IdxFile]) -> list[str]:
    return [file.name for file in files if not os.path.isfile(locate(directory, file))]


def _fetch(cache: Path, file: IdxFile) -> None:
    """Have ``file``, unpacked, in the cache: a valid one is kept, else the first complete one is fetched."""
    try:
        import pooch
    except ImportError as error:
        raise MnistUnavailableError(
            f'a download needs pooch ({error}): pip install "fastnn[train]"'
        ) from None

    failures = []
    for mirror in mirrors():
        url = f"{mirror}{file.name}.gz"
        try:
            pooch.retrieve(url, f"md5:{file.md5}", fname=file.name, path=cache, downloader=download)
            return
        except (OSError, ValueError) as error:  # DataError and pooch's refusal of a hash are ValueErrors
            failures.append(f"{url}: {error}")
    raise MnistUnavailableError("; ".join(failures) or "not in the cache, and no mirror is set")
