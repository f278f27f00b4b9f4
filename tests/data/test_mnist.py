"""Where MNIST is searched for, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fastnn._cache import cache_dir
from fastnn.data import DataError, load
from fastnn.data.digits import load_digits
from fastnn.data.mnist import MNIST_FILES, MnistUnavailableError, load_mnist

REAL = os.environ.get("FASTNN_DATA_DIR", "")


def refuse(message: str) -> None:
    raise AssertionError(f"nothing to say was expected; got {message!r}")


@pytest.mark.parametrize("compressed", [True, False])
def test_the_given_directory(tmp_path: Path, miniature, compressed: bool) -> None:
    data = load_mnist(miniature.write(tmp_path, compressed=compressed), refuse, files=miniature.files)
    assert data.name == "mnist"
    assert data.train_images.shape == (6, 784)
    assert data.train_images.dtype == np.uint8
    assert data.test_labels.dtype == np.int64
    raw = miniature.content["t10k-images-idx3-ubyte"][16:]
    assert data.test_images.tobytes() == raw
    assert data.test_labels.tolist() == list(miniature.content["t10k-labels-idx1-ubyte"][8:])


def test_the_given_directory_is_the_only_one(tmp_path: Path, miniature, monkeypatch) -> None:
    monkeypatch.setenv("FASTNN_DATA_DIR", str(miniature.write(tmp_path / "env")))
    with pytest.raises(DataError, match="lacks train-images-idx3-ubyte, train-labels") as error:
        load_mnist(tmp_path / "given", refuse, files=miniature.files)
    assert not isinstance(error.value, MnistUnavailableError)
    assert str(tmp_path / "given") in str(error.value)


def test_a_bad_file_in_the_given_directory_is_an_error(tmp_path: Path, miniature) -> None:
    directory = miniature.write(tmp_path)
    (directory / "t10k-labels-idx1-ubyte.gz").write_bytes(b"foreign")
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: not an IDX file") as error:
        load_mnist(directory, refuse, files=miniature.files)
    assert not isinstance(error.value, MnistUnavailableError)


def test_files_of_another_data_set_are_refused(tmp_path: Path, miniature) -> None:
    with pytest.raises(DataError, match="expected an array of 60000 x 28 x 28; the header says 6 x 28 x 28"):
        load_mnist(miniature.write(tmp_path), refuse)


def test_the_environment_comes_before_the_cache(tmp_path: Path, miniature, monkeypatch) -> None:
    monkeypatch.setenv("FASTNN_DATA_DIR", str(miniature.write(tmp_path / "env")))
    miniature.write(cache_dir() / "mnist")
    assert load_mnist(None, refuse, files=miniature.files).source == str(tmp_path / "env")


def test_a_bad_file_in_the_environments_directory_is_an_error(tmp_path: Path, miniature, monkeypatch) -> None:
    directory = miniature.write(tmp_path / "env")
    (directory / "train-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b")
    monkeypatch.setenv("FASTNN_DATA_DIR", str(directory))
    miniature.write(cache_dir() / "mnist")
    with pytest.raises(DataError, match=r"FASTNN_DATA_DIR is set: .*train-labels-idx1-ubyte\.gz: truncated"):
        load_mnist(None, refuse, files=miniature.files)


@pytest.mark.parametrize("name", [".", "missing", "x" * 300])
def test_an_environments_directory_without_files_is_an_error(
    tmp_path: Path, name: str, miniature, monkeypatch
) -> None:
    monkeypatch.setenv("FASTNN_DATA_DIR", str(tmp_path / name))
    miniature.write(cache_dir() / "mnist")
    with pytest.raises(DataError, match=r"FASTNN_DATA_DIR is set: .*lacks train-images-idx3") as error:
        load(None, refuse)
    assert not isinstance(error.value, MnistUnavailableError)
    assert str(tmp_path / name) in str(error.value)


def test_the_place_of_the_cache(tmp_path: Path, monkeypatch) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("FASTNN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/fastnn")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_dir() == Path("/home/somebody/.cache/fastnn")


def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user unknown to the machine, in a container."""
    for variable in ("FASTNN_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)


def test_without_a_home_directory_there_are_the_digits(tmp_path: Path, miniature, monkeypatch) -> None:
    _no_home(monkeypatch)
    said: list[str] = []
    assert load(None, said.append).name == "digits"
    assert "no home directory" in said[-1]
    given = miniature.write(tmp_path / "given")
    assert load_mnist(given, refuse, files=miniature.files).source == str(given)
    monkeypatch.setenv("FASTNN_DATA_DIR", str(given))
    assert load_mnist(None, refuse, files=miniature.files).source == str(given)


# Neither readable nor writable, whoever runs the tests: names are at most 255 bytes long.
FORBIDDEN = "x" * 300


@pytest.mark.parametrize("variable", ["FASTNN_CACHE_DIR", "XDG_CACHE_HOME", "HOME"])
@pytest.mark.parametrize("mirrors", ["", "http://127.0.0.1:9/"])
def test_directories_that_may_not_be_used_end_in_the_digits(
    tmp_path: Path, variable: str, mirrors: str, monkeypatch
) -> None:
    for name in ("FASTNN_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, str(tmp_path / FORBIDDEN))
    monkeypatch.setenv("FASTNN_MIRRORS", mirrors)
    said: list[str] = []
    assert load(None, said.append).name == "digits"
    assert "MNIST IS NOT AVAILABLE" in said[-1]
    with pytest.raises(DataError, match="lacks train-images"):
        load(tmp_path / FORBIDDEN, said.append)


def test_an_unreadable_cached_copy_is_fetched_again(miniature, monkeypatch) -> None:
    directory = miniature.write(cache_dir() / "mnist")

    def refuse_it(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("fastnn.data.mnist.read_idx", refuse_it)
    said: list[str] = []
    with pytest.raises(MnistUnavailableError, match="no mirror is set"):
        load_mnist(None, said.append, files=miniature.files)
    assert "Permission denied" in said[0]
    assert str(directory) in said[0]


def test_the_digits_come_last_and_loudly() -> None:
    said: list[str] = []
    data = load(None, said.append)
    assert data.name == "digits"
    assert "not MNIST" in data.title
    assert len(said) == 1
    assert "MNIST IS NOT AVAILABLE" in said[0]
    assert "no mirror is set" in said[0]


def test_the_digits_split_and_constants() -> None:
    data = load_digits()
    assert data.train_images.shape == (1437, 64)
    assert data.test_images.shape == (360, 64)
    assert data.train_images.dtype == np.uint8
    assert data.train_images.max() == data.white
    assert data.train_images.mean() == pytest.approx(data.mean, abs=1e-6)
    assert data.train_images.std() == pytest.approx(data.std, abs=1e-6)
    assert set(data.test_labels) == set(range(10))


@pytest.mark.skipif(not REAL, reason="FASTNN_DATA_DIR is not set")
def test_the_real_mnist_is_read() -> None:
    data = load_mnist(REAL, refuse, files=MNIST_FILES)
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert np.bincount(data.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train_images.mean() == pytest.approx(data.mean, abs=1e-6)
    # In pieces: a float64 copy of all pixels would take 376 MB.
    squares = sum(float((part.astype(np.float64) ** 2).sum()) for part in np.split(data.train_images, 60))
    std = (squares / data.train_images.size - data.mean**2) ** 0.5
    assert std == pytest.approx(data.std, abs=1e-4)
