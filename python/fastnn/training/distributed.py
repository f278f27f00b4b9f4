"""The processes of one run, as torchrun starts them: they share each batch, and the first one writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastnn import _dispatch
from fastnn.data import Batches
from fastnn.training.model import Parts, Steps

T = TypeVar("T")

# How long one process may work while the others wait: the longest is a download of the data.
_PATIENCE = timedelta(minutes=10)


class RanksError(RuntimeError):
    """The processes of a run cannot connect to each other, or one of them has ended."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes of a run this one is. All must make the same calls, in the same order.

    Attributes:
        rank: from 0 to before `size`.
        size: processes of the run.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that reads, reports and writes."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of the rows of a batch: as many as each other's, or one more."""
        return rows.tensor_split(self.size)[self.rank]

    def sum_(self, tensor: Tensor) -> None:
        """Replace `tensor` by the sum over all processes, which is bit for bit the same in each of them."""
        with self._talking():
            dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        if self.size == 1:
            return flag
        found = torch.tensor(flag, dtype=torch.uint8)
        with self._talking():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, which alone calls it."""
        if self.size == 1:
            return make()
        made = [make() if self.leads else None]
        with self._talking():
            dist.broadcast_object_list(made, device=torch.device("cpu"))
        return made[0]  # type: ignore[return-value]

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            what = str(error).partition(". ")[0]  # what follows is advice, of several lines
            raise RanksError(
                f"process {self.rank} of {self.size} lost its connection to the others: one has ended, or "
                f"the network failed: {what}"
            ) from None


def local_rank() -> int:
    """The number of this process among those on this machine.

    Raises:
        RanksError: ``LOCAL_RANK`` is no number.
    """
    return _number("LOCAL_RANK", 0)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise RanksError(f"{variable}: expected a whole number, as torchrun sets it, got {text!r}")
    return int(text)


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the processes described by ``RANK`` and ``WORLD_SIZE``; without these this one is alone.

    They use NCCL for tensors on GPUs, gloo for everything else. Where ``OMP_NUM_THREADS`` is not set, the
    processes on this machine share the threads that torch would have one use.

    Raises:
        RanksError: they cannot connect to each other, or a variable is no number.
    """
    size = _number("WORLD_SIZE", 1)
    if "RANK" not in os.environ or size == 1:
        yield Ranks()
        return
    if not dist.is_available():
        raise RanksError(f"WORLD_SIZE is {size}, but this torch is built without torch.distributed")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() // _number("LOCAL_WORLD_SIZE", 1), 1))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise RanksError(f"the {size} processes cannot connect to each other: {error}") from None
    yield Ranks(dist.get_rank(), size)
    # Not after an error: NCCL would wait for processes that are gone.
    dist.destroy_process_group()


def shared_steps(parts: Parts, ready: Callable[[Tensor], Tensor], ranks: Ranks) -> Steps:
    """Steps on whole batches, of which each process computes a share of the gradients.

    The loss of a batch of n is the sum over its rows, divided by n; so the sum of what the processes get for
    their rows is the whole batch's gradient, however the rows are shared. All gradients are one block of
    memory, which is summed in one call. With equal parameters and optimizers before a step, the processes
    have equal ones after it.

    Args:
        parts: whose loss takes a ``reduction``.
        ready: makes the model's inputs from images.
        ranks: the processes.
    """
    model, loss, optimizer = parts
    sum_of = type(loss)(reduction="sum")
    params = list(model.parameters())
    gradients = torch.zeros_like(torch.nn.utils.parameters_to_vector(params).detach())
    for param, gradient in zip(params, gradients.split([p.numel() for p in params]), strict=True):
        param.grad = gradient.view_as(param)
    why = f"{ranks.size} processes sum their gradients"

    def take(batches: Batches, first: int, rates: Sequence[float]) -> Tensor:
        losses = []
        for number, rate in enumerate(rates, first):
            _dispatch.decide("train_step", why)
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = batches.rows(number, number + 1)
            own = ranks.share(rows)
            gradients.zero_()  # backward adds to them
            output = model(ready(batches.images.index_select(0, own)))
            part = sum_of(output, batches.labels.index_select(0, own)) / len(rows)
            part.backward()
            ranks.sum_(gradients)
            optimizer.step()
            losses.append(part.detach())
        whole = torch.stack(losses)
        ranks.sum_(whole)
        return whole

    return take
