"""Adam against torch's default and its fused one.

Compulsory in float32: parameter, gradient and two moments read, parameter and moments written, 28 bytes a
parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import fastnn.optim

from ..case import Call, Case, Workload

_BYTES_PER_PARAMETER = 28
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


def _build(shapes: Sequence[tuple[int, ...]]) -> Workload:
    values = [0.05 * torch.randn(shape) for shape in shapes]
    grads = [torch.randn(shape) for shape in shapes]
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "fastnn": fastnn.optim.Adam,
        "torch": torch.optim.Adam,
        "torch fused": partial(torch.optim.Adam, fused=True),
    }
    calls = {name: _stepper(make, values, grads) for name, make in makers.items()}
    # Parameters reach 0.2 and a step moves them by lr = 1e-3: a step wrong by one part in 1000 is seen.
    return Workload(calls, tolerance=8 * torch.finfo(torch.float32).eps, checked_calls=3)


CASES = [
    Case(
        "adam",
        name,
        partial(_build, shapes),
        bytes=_BYTES_PER_PARAMETER * sum(torch.Size(shape).numel() for shape in shapes),
        quick=quick,
    )
    for name, shapes, quick in (
        ("784-28-10 MLP, 4 tensors", _MLP, True),
        ("10M, 100 tensors", _MANY, False),
    )
]
