"""The soft update of target networks against the loop that programs write, and torch's multi-tensor lerp.

Compulsory in float32: target and source read, target written: 12 bytes a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fastnn.optim import polyak_

from ..case import Call, Case, Workload

_TAU = 0.005
_CRITIC = ((256, 23), (256,), (256, 256), (256,), (1, 256), (1,))
_SHAPES = (
    ("two critics of SAC, 12 tensors", _CRITIC * 2, True),
    ("10M, 100 tensors", ((1000, 100),) * 100, False),
)


def _loop(targets: list[Tensor], sources: list[Tensor], tau: float) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.data.copy_(tau * source.data + (1 - tau) * target.data)


def _loop_in_place(targets: list[Tensor], sources: list[Tensor], tau: float) -> None:
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            target.data.mul_(1 - tau)
            torch.add(target.data, source.data, alpha=tau, out=target.data)


def _foreach(targets: list[Tensor], sources: list[Tensor], tau: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(targets, sources, tau)


def _mover(
    update: Callable[[list[Tensor], list[Tensor], float], None],
    values: Sequence[Tensor],
    goals: Sequence[Tensor],
) -> Call:
    targets: list[Tensor] = [torch.nn.Parameter(value.clone()) for value in values]
    sources: list[Tensor] = [torch.nn.Parameter(goal.clone()) for goal in goals]

    def step() -> list[Tensor]:
        update(targets, sources, _TAU)
        return targets

    return step


def _build(shapes: Sequence[tuple[int, ...]]) -> Workload:
    values, goals = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    updates = {
        "fastnn": polyak_,
        "torch": _loop,
        "torch mul_, add": _loop_in_place,
        "torch foreach": _foreach,
    }
    calls = {name: _mover(update, values, goals) for name, update in updates.items()}
    return Workload(calls, 8 * torch.finfo(torch.float32).eps, checked_calls=3)


CASES = [
    Case(
        "polyak",
        name,
        partial(_build, shapes),
        bytes=12 * sum(torch.Size(shape).numel() for shape in shapes),
        quick=quick,
    )
    for name, shapes, quick in _SHAPES
]
