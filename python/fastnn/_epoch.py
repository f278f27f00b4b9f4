"""An epoch of training steps."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, SupportsIndex

import torch
from torch import Tensor

from fastnn import _backend
from fastnn._epoch_kernel import train_on_chip

if TYPE_CHECKING:
    from fastnn._train_step import TrainStep


def run_epoch(
    step: TrainStep, images: Tensor, labels: Tensor, batch_size: int, permutation: Tensor | None
) -> Tensor:
    """What `TrainStep.epoch` does, the arguments not yet checked."""
    _check(images, labels, batch_size, permutation)
    batch_size = index(batch_size)
    if permutation is None:
        permutation = torch.randperm(len(images), device=images.device)
    if _has_kernels(images):
        reason = _backend.torch_reason()
        losses = train_on_chip(step, images, labels, batch_size, permutation) if reason is None else reason
        if not isinstance(losses, str):
            _backend.decide("train_epoch", None)
            return losses
        _backend.decide("train_epoch", losses)
    return torch.stack(_loop(step, images, labels, batch_size, permutation))


def _has_kernels(images: Tensor) -> bool:
    return images.is_cuda


def _loop(
    step: TrainStep, images: Tensor, labels: Tensor, batch_size: int, permutation: Tensor
) -> list[Tensor]:
    return [
        step(images.index_select(0, rows), labels.index_select(0, rows))
        for rows in permutation.split(batch_size)
    ]


def _check(images: Tensor, labels: Tensor, batch_size: int, permutation: Tensor | None) -> None:
    for name, tensor in (("images", images), ("labels", labels), ("permutation", permutation)):
        if tensor is None and name == "permutation":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"TrainStep.epoch: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.device != images.device:
            raise ValueError(
                f"TrainStep.epoch: {name} is on {tensor.device}, expected {images.device} as the images"
            )
        if tensor.dim() == 0:
            raise ValueError(f"TrainStep.epoch: {name} has no dimension, expected one entry for each image")
        if len(tensor) != len(images):
            raise ValueError(
                f"TrainStep.epoch: {name} has {len(tensor)} entries, expected one for each of the "
                f"{len(images)} images"
            )
    if len(images) == 0:
        raise ValueError("TrainStep.epoch: there are no images")
    if isinstance(batch_size, bool) or not isinstance(batch_size, SupportsIndex):
        raise TypeError(f"TrainStep.epoch: batch_size must be an int, got {type(batch_size).__name__}")
    if batch_size < 1:
        raise ValueError(f"TrainStep.epoch: batch_size must be at least 1, got {batch_size}")
    if permutation is None:
        return
    if permutation.dtype is not torch.int64:
        raise TypeError(f"TrainStep.epoch: permutation must be int64, got {permutation.dtype}")
    if permutation.dim() != 1:
        raise ValueError(
            f"TrainStep.epoch: permutation must have one dimension, got shape {tuple(permutation.shape)}"
        )
