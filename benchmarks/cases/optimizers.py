"""Each optimizer against torch's default and, where torch has one, its fused one.

Compulsory in float32: parameter, gradient and state read, parameter and state written: 12 bytes a parameter
and 8 more for every tensor of state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastnn.optim

from ..case import Call, Case, Foreign, Workload

_MLP = ((28, 784), (28,), (10, 28), (10,))
_MANY = ((1000, 100),) * 100


def _stepper(
    make: Callable[..., torch.optim.Optimizer], values: Sequence[Tensor], grads: Sequence[Tensor]
) -> Call:
    parameters = [torch.nn.Parameter(value.clone()) for value in values]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    optimizer = make(parameters)

    def step() -> list[torch.nn.Parameter]:
        optimizer.step()
        return parameters

    return step


def _build(
    shapes: Sequence[tuple[int, ...]],
    makers: Mapping[str, Callable[..., torch.optim.Optimizer]],
    foreign_op: str | None,
) -> Workload:
    values = [0.05 * torch.randn(shape) for shape in shapes]
    grads = [torch.randn(shape) for shape in shapes]
    calls = {name: _stepper(make, values, grads) for name, make in makers.items()}
    # Parameters reach 0.2 and a step moves them by lr = 1e-3: a step wrong by one part in 1000 is detected.
    foreign = Foreign(foreign_op, {"values": values, "grads": grads}) if foreign_op else None
    return Workload(calls, 8 * torch.finfo(torch.float32).eps, checked_calls=3, foreign=foreign)


# name, options, whether torch has a fused one, tensors of state
_OPTIMIZERS: tuple[tuple[str, dict[str, Any], bool, int], ...] = (
    ("Adam", {}, True, 2),
    ("SGD", {"momentum": 0.9}, True, 1),
    ("Adagrad", {"lr": 1e-3}, True, 1),
    ("RMSprop", {"lr": 1e-3}, False, 1),
)


# Those implemented for JAX in peers/jax_peer.py.
_JAX_OPS = {"Adam": "adam"}


def _makers(
    name: str, options: dict[str, Any], fused: bool
) -> dict[str, Callable[..., torch.optim.Optimizer]]:
    theirs = getattr(torch.optim, name)
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "fastnn": partial(getattr(fastnn.optim, name), **options),
        "torch": partial(theirs, **options),
    }
    if fused:
        makers["torch fused"] = partial(theirs, fused=True, **options)
    return makers


CASES = [
    Case(
        optimizer.lower(),
        shape,
        partial(_build, shapes, _makers(optimizer, options, fused), _JAX_OPS.get(optimizer)),
        bytes=(12 + 8 * states) * sum(torch.Size(each).numel() for each in shapes),
        quick=quick,
    )
    for optimizer, options, fused, states in _OPTIMIZERS
    for shape, shapes, quick in (
        ("784-28-10 MLP, 4 tensors", _MLP, True),
        ("10M, 100 tensors", _MANY, False),
    )
]
