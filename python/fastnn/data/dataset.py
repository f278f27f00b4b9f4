"""The data set as the trainer sees it: images as bytes in memory, and how to normalise them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt


class DataError(ValueError):
    """Data that cannot be used: a file is missing, truncated, foreign or not what its name promises."""


@dataclass(frozen=True)
class Dataset:
    """Labelled grey images, split for training and testing.

    Images are uint8 of shape (N, height * width), labels int64 of shape (N,). A pixel ``p`` enters the
    network as ``(p - mean) / std``, with ``mean`` and ``std`` in the units of the pixels, taken over all
    pixels of the training images. ``TrainStep`` divides bytes by 255 first: its arguments are ``mean / 255``
    and ``std / 255``.
    """

    name: str
    source: str
    height: int
    width: int
    classes: int
    white: int
    mean: float
    std: float
    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.int64]

    @property
    def inputs(self) -> int:
        """Pixels of one image."""
        return self.height * self.width

    @property
    def title(self) -> str:
        """The name for people: never that of another data set."""
        return {"mnist": "MNIST", "digits": "digits (scikit-learn, 8x8; not MNIST)"}.get(self.name, self.name)

    def first(self, train_samples: int | None) -> Dataset:
        """The same data set with at most the first ``train_samples`` training images (None: all)."""
        if train_samples is None:
            return self
        return replace(
            self,
            train_images=self.train_images[:train_samples],
            train_labels=self.train_labels[:train_samples],
        )
