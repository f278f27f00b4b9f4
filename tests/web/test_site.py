"""The static files: their size, and the digits among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastnn.data import read_idx
from fastnn.data.digits import load_digits

DIGITS = Path(__file__).parents[2] / "web" / "data" / "digits"


@pytest.mark.parametrize(("file", "split"), [("train", "train"), ("t10k", "test")])
def test_the_bundled_digits_are_those_of_the_training_program(file: str, split: str) -> None:
    data = load_digits()
    images = read_idx(DIGITS / f"{file}-images-idx3-ubyte.gz")
    labels = read_idx(DIGITS / f"{file}-labels-idx1-ubyte.gz")
    assert images.shape[1:] == (8, 8)
    assert np.array_equal(images.reshape(len(images), -1), getattr(data, f"{split}_images"))
    assert np.array_equal(labels, getattr(data, f"{split}_labels"))


def test_the_site_is_small(built: Path) -> None:
    assert sum(path.stat().st_size for path in built.rglob("*") if path.is_file()) < 2_000_000
