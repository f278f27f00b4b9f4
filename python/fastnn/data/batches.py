"""Shuffled batches out of images held in memory as bytes."""

from __future__ import annotations

import torch
from torch import Tensor


class Batches:
    """Batches of normalised images, in an order drawn anew for each epoch from a seeded generator.

    A batch is one ``index_select`` of bytes and one conversion ``(pixel - mean) / std``; no work per sample
    is done in Python. The last batch of an epoch may be smaller.

    Args:
        images: uint8, (N, pixels), on the device of the training.
        labels: int64, (N,), on the same device.
        batch_size: samples in a batch.
        mean: subtracted from each pixel.
        std: divides the difference.
        dtype: of the batches' images.
        seed: of the order.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: float,
        std: float,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.dtype = dtype
        self._offset = -mean / std
        self._scale = 1.0 / std
        self._generator = torch.Generator().manual_seed(seed)
        self.start_epoch()

    def __len__(self) -> int:
        """Batches in one epoch."""
        return -(-len(self.images) // self.batch_size)

    def start_epoch(self) -> None:
        """Draw the order of the next epoch."""
        self._state = self._generator.get_state()
        order = torch.randperm(len(self.images), generator=self._generator)
        self._order = order.to(self.images.device).split(self.batch_size)

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

    def get(self, index: int) -> tuple[Tensor, Tensor]:
        """Batch ``index`` of the present epoch: images (B, pixels) of ``dtype``, labels (B,) int64."""
        rows = self._order[index]
        return self.normalise(self.images.index_select(0, rows)), self.labels.index_select(0, rows)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 pixels (B, pixels) as ``dtype``, with mean 0 and deviation 1 over the training images."""
        return images.to(self.dtype).mul_(self._scale).add_(self._offset)
