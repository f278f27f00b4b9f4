"""Shuffled batches out of images held in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(images: Tensor, mean: float, std: float, dtype: torch.dtype) -> Tensor:
    """uint8 pixels of any shape as ``(pixel - mean) / std`` in `dtype`; `mean` and `std` in pixel units.

    These are a `Dataset`'s own; the arguments of ``TrainStep`` are 1 / 255 of them.
    """
    return images.to(dtype).mul_(1.0 / std).add_(-mean / std)


class Batches:
    """Batches of images as they are held, in a new order for each epoch, from a seeded generator.

    They are given as row indices of the images, to be gathered where they are needed. Rows of bytes are a
    quarter of the traffic of float32 ones; who trains on bytes normalises them on the way. The last batch
    of an epoch may be smaller.

    Args:
        images: (N, pixels), on the device of the training.
        labels: int64, (N,), on the same device.
        batch_size: samples in a batch.
        seed: of the order.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, batch_size: int, seed: int) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self.start_epoch()

    def __len__(self) -> int:
        """Batches in one epoch."""
        return -(-len(self.images) // self.batch_size)

    def start_epoch(self) -> None:
        """Draw the order of the next epoch."""
        self._state = self._generator.get_state()
        order = torch.randperm(len(self.images), generator=self._generator, device="cpu")
        self._order = order.to(self.images.device)

    def state(self) -> Tensor:
        """The generator's state, uint8, from which the present epoch's order was drawn."""
        return self._state

    def restore(self, state: Tensor) -> None:
        """Go back to the epoch whose ``state()`` this was.

        Raises:
            RuntimeError: ``state`` is not the state of a generator (torch's own error).
        """
        self._generator.set_state(state)
        self.start_epoch()

    def rows(self, first: int, end: int) -> Tensor:
        """The rows of the present epoch's batches from number `first` to before number `end`, in turn."""
        return self._order[first * self.batch_size : end * self.batch_size]
