"""An epoch of training steps."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, SupportsIndex

import torch
from torch import Tensor

from fastnn import _backend
from fastnn._epoch_kernel import train_on_chip

if TYPE_CHECKING:
    from fastnn._train_step import TrainStep

Rates = Sequence[float] | Tensor | None


def run_epoch(
    step: TrainStep, images: Tensor, labels: Tensor, batch_size: int, permutation: Tensor | None, lr: Rates
) -> Tensor:
    """What `TrainStep.epoch` does, the arguments not yet checked."""
    _check(images, labels, batch_size, permutation)
    batch_size = index(batch_size)
    count = len(images) if permutation is None else len(permutation)
    rates = None if lr is None else _rates(lr, -(-count // batch_size))
    if permutation is None:
        permutation = torch.randperm(count, device=images.device)
    if _has_kernels(images):
        reason = _backend.torch_reason()
        losses: Tensor | str | None = reason
        if reason is None:
            losses = train_on_chip(step, images, labels, batch_size, permutation, rates)
        if isinstance(losses, Tensor):
            _backend.decide("train_epoch", None)
            return losses
        _backend.decide("train_epoch", losses)
    return _Steps(step, images, labels, batch_size, permutation, rates).take()


def _has_kernels(images: Tensor) -> bool:
    return images.is_cuda


# Multiply-adds of one native call, a third of those of its steps: 20 to 60 ms, so that Ctrl-C is heard. And
# the most steps, where a step is hardly any work.
_CALL_WORK, _CALL_STEPS = 2**29, 2048


class _Steps:
    """The steps of an epoch one after the other, many of them a native call where that can be."""

    def __init__(
        self,
        step: TrainStep,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        rows: Tensor,
        rates: Tensor | None,
    ) -> None:
        self._step = step
        self._images = images
        self._labels = labels
        self._batch_size = batch_size
        self._rows = rows.contiguous()
        self._rates = rates

    def take(self) -> Tensor:
        """Take them all; the losses."""
        if self._rates is None:
            return self._take()
        groups = self._step.optimizer.param_groups
        before = [group["lr"] for group in groups]
        try:
            return self._take()
        finally:
            for group, lr in zip(groups, before, strict=True):
                group["lr"] = lr

    def _take(self) -> Tensor:
        losses: list[Tensor] = []
        taken = 0
        batches = self._rows.split(self._batch_size)
        native = type(self._rows) is Tensor and self._images.device.type == "cpu"
        while taken < len(batches):
            some = self._natively(taken) if native else None
            native = some is not None
            # Where the next batch has an index that is out of range, the step by itself raises.
            if some is None or len(some) == 0:
                some = self._one(taken, batches[taken])
            losses.append(some)
            taken += len(some)
        return torch.cat(losses)

    def _one(self, number: int, rows: Tensor) -> Tensor:
        """The loss of a step by itself, in a row of one."""
        if self._rates is not None:
            for group in self._step.optimizer.param_groups:
                group["lr"] = float(self._rates[number])
        images, labels = self._images.index_select(0, rows), self._labels.index_select(0, rows)
        return self._step(images, labels).reshape(1)

    def _natively(self, taken: int) -> Tensor | None:
        """The losses of the next steps, which have the same number of rows, as far as their indices are in
        range; or None, with everything left as it is, where they cannot be taken in one native call."""
        ready = self._step._ready(self._images) if _backend.torch_reason() is None else ""
        if isinstance(ready, str):
            return None
        plan, options, weight = ready
        rows = self._rows[taken * self._batch_size :]
        size = min(self._batch_size, len(rows))
        weights = sum(w.numel() for table in plan.tables if (w := table.get("weight")) is not None)
        steps = min(len(rows) // size, max(_CALL_WORK // (size * max(weights, 1)), 1), _CALL_STEPS)
        rates = None if self._rates is None else self._rates[taken : taken + steps]
        losses = weight.new_empty(steps)
        reason = self._step._call(
            plan.native.run_batches, self._images, self._labels, losses, options, rows[: steps * size], rates
        )
        if reason is not None:
            return None
        _backend.decide("train_step", None)
        return losses[: plan.native.taken]


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
    if len(labels) != len(images):
        raise ValueError(
            f"TrainStep.epoch: labels has {len(labels)} entries, expected one for each of the "
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
    if len(permutation) == 0:
        raise ValueError("TrainStep.epoch: permutation names no image")


def _rates(lr: Sequence[float] | Tensor, steps: int) -> Tensor:
    """The learning rates as float64 on the CPU."""
    try:
        rates = torch.as_tensor(lr, dtype=torch.float64, device="cpu").detach().contiguous()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"TrainStep.epoch: lr must hold a number for each step, got {type(lr).__name__}"
        ) from error
    if rates.shape != (steps,):
        raise ValueError(
            f"TrainStep.epoch: lr has shape {tuple(rates.shape)}, expected one entry for each of the "
            f"{steps} steps"
        )
    if not bool((rates >= 0).all()):
        raise ValueError("TrainStep.epoch: lr must be at least 0")
    return rates
