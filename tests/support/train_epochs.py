"""Shared by the tests of TrainStep.epoch."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import fastnn
from train_steps import OPTIMIZERS, chain


def assert_same_state(step: fastnn.TrainStep, twin: fastnn.TrainStep) -> None:
    """Bit for bit: parameters, gradients and all optimizer state."""
    for p, q in zip(step.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(p, q)
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert torch.equal(p.grad, q.grad)
        ours, theirs = step.optimizer.state[p], twin.optimizer.state[q]
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            same = torch.equal(ours[key], value) if isinstance(value, Tensor) else ours[key] == value
            assert same, key


def loop(
    step: fastnn.TrainStep,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    order: Tensor,
    rates: list[float] | None = None,
) -> Tensor:
    losses = []
    for number, rows in enumerate(order.split(batch_size)):
        if rates is not None:
            for group in step.optimizer.param_groups:
                group["lr"] = rates[number]
        losses.append(step(images[rows], labels[rows]))
    return torch.stack(losses)


def native_calls(step: fastnn.TrainStep, *arguments: Any, **options: Any) -> tuple[Tensor, int]:
    """The losses of an epoch whose steps must all be native, and the number of calls it took."""
    seen = fastnn.explain(step.epoch, *arguments, **options)
    assert set(seen.decisions) == {("train_epoch", None)}
    return seen.result, len(seen.decisions)


def same_as_the_loop(
    step: fastnn.TrainStep,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    order: Tensor,
    rates: list[float] | None = None,
) -> int:
    """Run an epoch natively and a copy as a loop: they must agree bit for bit. Returns the number of native
    calls."""
    twin = copy.deepcopy(step)
    losses, calls = native_calls(step, images, labels, batch_size, order, lr=rates)
    assert torch.equal(losses, loop(twin, images, labels, batch_size, order, rates))
    assert_same_state(step, twin)
    return calls


def step_by_step(step: fastnn.TrainStep, *arguments: Any, **options: Any) -> tuple[Tensor, str]:
    """The losses of an epoch left to the loop, and why."""
    seen = fastnn.explain(step.epoch, *arguments, **options)
    (reason,) = (d.reason for d in seen.decisions if d.op == "train_epoch")
    assert reason is not None
    return seen.result, reason


def a_step(
    optimizer: str = "adam",
    loss: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> fastnn.TrainStep:
    model = nn.Sequential(nn.Flatten(), *chain([12, 8, 5], dtype=dtype))
    if isinstance(loss, nn.NLLLoss):
        model.append(nn.LogSoftmax(1))
    options = {"mean": 0.3, "std": 0.5, **options}
    return fastnn.TrainStep(
        model, loss or nn.CrossEntropyLoss(), OPTIMIZERS[optimizer](model.parameters()), **options
    )


def data(n: int = 23) -> tuple[Tensor, Tensor]:
    return torch.randint(256, (n, 3, 4), dtype=torch.uint8), torch.randint(5, (n,))
