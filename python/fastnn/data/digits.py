"""scikit-learn's bundled 8x8 digits: the data that is there when MNIST is not."""

from __future__ import annotations

import numpy as np

from fastnn.data.dataset import DataError, Dataset

# The 1,797 images come grouped by writer: a cut, not a shuffle, keeps most test writers out of the training
# part.
_TRAIN = 1437

# Over the 91,968 pixels of the training part, in units of a pixel (0 to 16).
_MEAN, _STD = 4.886178, 6.008114


def load_digits() -> Dataset:
    """The 8x8 digits: the first 1,437 images to train on, the last 360 to test on.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled
    except ImportError as error:
        raise DataError(
            f'the bundled digits need scikit-learn ({error}): pip install "fastnn[train]"'
        ) from None
    bunch = bundled()
    images = np.ascontiguousarray(bunch.data.astype(np.uint8))
    labels = bunch.target.astype(np.int64)
    return Dataset(
        name="digits",
        source="scikit-learn",
        height=8,
        width=8,
        classes=10,
        white=16,
        mean=_MEAN,
        std=_STD,
        train_images=images[:_TRAIN],
        train_labels=labels[:_TRAIN],
        test_images=images[_TRAIN:],
        test_labels=labels[_TRAIN:],
    )
