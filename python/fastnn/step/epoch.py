"""An epoch of training steps."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import SupportsIndex

import torch
from torch import Tensor

from fastnn import _dispatch
from fastnn._diagnostics import counted
from fastnn._dispatch import Unsupported, refuse
from fastnn.capture import cuda_graph
from fastnn.step.epoch_kernel import train_on_chip
from fastnn.step.runner import Runner


def run_epoch(
    runner: Runner,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    permutation: Tensor | None,
    lr: Sequence[float] | Tensor | None,
) -> Tensor:
    """What `TrainStep.epoch` does, the arguments not yet checked."""
    _check(images, labels, batch_size, permutation)
    runner.look_again()  # with this many steps that is worthwhile
    count = len(images) if permutation is None else len(permutation)
    batch_size = min(index(batch_size), count)
    rates = None if lr is None else _rates(lr, -(-count // batch_size))
    if permutation is None:
        permutation = torch.randperm(count, device=images.device)
    if _has_kernels(images):
        try:
            refuse(_dispatch.torch_reason())
            plan = runner.planned.find()
            losses = train_on_chip(plan, images, labels, batch_size, permutation, rates)
        except Unsupported as refusal:
            _dispatch.decide("train_epoch", str(refusal))
        else:
            _dispatch.decide("train_epoch", None)
            return losses
    return _Steps(runner, images, labels, batch_size, permutation, rates).take()


def _has_kernels(images: Tensor) -> bool:
    return images.is_cuda


# The work of one native call, 30 to 60 ms, so that Ctrl-C takes effect: a third of the multiply-adds of its
# steps, with the update of a weight weighted like several samples. And the most steps, for steps of hardly
# any work.
_CALL_WORK, _UPDATE_WORK, _CALL_STEPS = 2**29, 16, 2048


class _Steps:
    """The steps of an epoch in order, many per native call where possible."""

    def __init__(
        self,
        runner: Runner,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        rows: Tensor,
        rates: Tensor | None,
    ) -> None:
        self._runner = runner
        self._images = images
        self._labels = labels
        self._batch_size = batch_size
        self._rows = rows.contiguous()
        self._rates = rates

    def take(self) -> Tensor:
        """Take them all; returns the losses."""
        losses: list[Tensor] = []
        taken, native = 0, not cuda_graph.is_there(self._images.device)  # there each step is a graph
        while taken * self._batch_size < len(self._rows):
            some: Tensor | None = None
            if native:
                try:
                    some = self._natively(taken)
                except Unsupported as refusal:
                    _dispatch.decide("train_epoch", str(refusal))
                    native = False
            # If the next batch has an index out of range, the single step raises.
            if some is None or len(some) == 0:
                some = self._one(taken)
            losses.append(some)
            taken += len(some)
        return torch.cat(losses)

    def _natively(self, taken: int) -> Tensor:
        """The losses of the next steps, which have the same number of rows, until the first with an index out
        of range; raises `Unsupported`, with nothing changed, if they cannot be taken in one native call."""
        if type(self._rows) is not Tensor:
            raise Unsupported(f"permutation is a {type(self._rows).__name__}")
        refuse(_dispatch.torch_reason())
        rows = self._rows[taken * self._batch_size :]
        size = min(self._batch_size, len(rows))
        params = [p for group in self._runner.spec.optimizer.param_groups for p in group["params"]]
        work = (size + _UPDATE_WORK) * max(sum(p.numel() for p in params), 1)
        steps = min(len(rows) // size, max(_CALL_WORK // work, 1), _CALL_STEPS)
        rows = rows[: steps * size]
        rates = None if self._rates is None else self._rates[taken : taken + steps]
        some = self._images, self._labels, rows, steps, rates
        reasons = []
        for taking in (self._runner.planned, self._runner.recorded):
            try:
                losses = taking.take_many(*some)
            except Unsupported as refusal:
                reasons.append(str(refusal))
            else:
                if len(losses):
                    _dispatch.decide("train_epoch", None)
                return losses
        raise Unsupported("; and ".join(reasons))

    def _one(self, number: int) -> Tensor:
        """The loss of a single step, as a tensor of one element."""
        rows = self._rows[number * self._batch_size : (number + 1) * self._batch_size]
        try:
            images, labels = self._images.index_select(0, rows), self._labels.index_select(0, rows)
        except IndexError:
            bad = int(rows[(rows < 0) | (rows >= len(self._images))][0])
            raise IndexError(
                f"TrainStep.epoch: permutation has the entry {bad} in step {number}, out of range for "
                f"{counted(len(self._images), 'image')}"
            ) from None
        if self._rates is None:
            return self._runner.take((images,), labels).reshape(1)
        before = [(group, group["lr"]) for group in self._runner.spec.optimizer.param_groups]
        try:
            for group, _ in before:
                group["lr"] = float(self._rates[number])
            return self._runner.take((images,), labels).reshape(1)
        finally:
            for group, lr in before:
                group["lr"] = lr


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
            f"TrainStep.epoch: got {counted(len(images), 'image')} and {counted(len(labels), 'label')}, "
            "expected one label for each image"
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
        raise ValueError("TrainStep.epoch: permutation is empty")


def _rates(lr: Sequence[float] | Tensor, steps: int) -> Tensor:
    """The learning rates as float64 on the CPU."""
    try:
        if isinstance(lr, Tensor) and lr.is_complex():
            raise TypeError
        rates = torch.as_tensor(lr, dtype=torch.float64, device="cpu").detach().contiguous()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"TrainStep.epoch: lr must hold a number for each step, got {type(lr).__name__}"
        ) from error
    if rates.shape != (steps,):
        raise ValueError(
            f"TrainStep.epoch: lr has shape {tuple(rates.shape)}, expected one entry for each of the {steps} "
            "steps (for the same in all of them set that of the optimizer)"
        )
    bad = rates[~(rates >= 0)]
    if len(bad):
        raise ValueError(f"TrainStep.epoch: lr must be at least 0, got {bad[0].item()}")
    return rates
