"""Clipping of the global norm against torch's, default and foreach.

Compulsory in float32: each gradient is read for the norm; those beyond the caches are read and written once
more: 12 bytes a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fastnn.nn.utils import clip_grad_norm_

from ..case import Call, Case, Workload

_SHAPES = (
    ("784-28-10 MLP, 4 tensors", ((28, 784), (28,), (10, 28), (10,)), True),
    ("10M, 100 tensors", ((1000, 100),) * 100, False),
)


def _clipper(clip: Callable[..., Tensor], grads: Sequence[Tensor]) -> Call:
    parameters = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    # A bound that each call lowers slightly, so that every call has to scale.
    bound = torch.cat([grad.flatten() for grad in grads]).norm().item()

    def step() -> list[Tensor]:
        nonlocal bound
        bound *= 0.9999
        clip(parameters, bound)
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    return step


def _build(shapes: Sequence[tuple[int, ...]]) -> Workload:
    grads = [torch.randn(shape) for shape in shapes]
    calls = {
        "fastnn": _clipper(clip_grad_norm_, grads),
        "torch": _clipper(torch.nn.utils.clip_grad_norm_, grads),
    }
    return Workload(calls, 1e3 * torch.finfo(torch.float32).eps, checked_calls=3)


CASES = [
    Case(
        "clip_grad_norm",
        name,
        partial(_build, shapes),
        bytes=12 * sum(torch.Size(shape).numel() for shape in shapes),
        quick=quick,
    )
    for name, shapes, quick in _SHAPES
]
