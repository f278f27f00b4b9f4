"""The data set of a run: MNIST if it is available, else the bundled digits, with a loud warning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastnn.data.dataset import Dataset
from fastnn.data.digits import load_digits
from fastnn.data.mnist import MnistUnavailableError, load_mnist


def load(data_dir: str | Path | None, notify: Callable[[str], None]) -> Dataset:
    """MNIST from ``data_dir``, ``$FASTNN_DATA_DIR``, the cache or the mirrors; failing all, the 8x8 digits.

    Args:
        data_dir: the only directory to look in, if given, as is that of ``$FASTNN_DATA_DIR`` else.
        notify: called with one line for each thing the user must know, above all that the data is not MNIST.

    Raises:
        DataError: a named directory lacks files or holds bad ones, or there is no data at all.
    """
    try:
        return load_mnist(data_dir, notify)
    except MnistUnavailableError as error:
        notify(
            "MNIST IS NOT AVAILABLE: training on scikit-learn's 8x8 digits instead, a smaller and different "
            "data set. To train on MNIST, set FASTNN_DATA_DIR to the directory of its files, or name that "
            f"(data_dir of load, --data-dir of the command line). What was tried: {error}"
        )
        return load_digits()
