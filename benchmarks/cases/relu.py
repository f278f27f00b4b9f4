"""ReLU. Forward reads x and writes y; backward reads dY and y and writes dX."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

import fastnn.functional

from ..case import Case, Workload


def _build(numel: int, backward: bool) -> Workload:
    x, dy = torch.randn(numel, requires_grad=True), torch.randn(numel)
    calls = {}
    for name, relu in (("fastnn", fastnn.functional.relu), ("torch", F.relu)):
        forward = partial(relu, x)
        calls[name] = (
            partial(torch.autograd.grad, forward(), x, dy, retain_graph=True) if backward else forward
        )
    return Workload(calls, tolerance=0.0)


CASES = [
    Case(f"relu {direction}", name, partial(_build, numel, backward), bytes=passes * numel * 4, quick=quick)
    for direction, backward, passes in (("forward", False, 2), ("backward", True, 3))
    for name, numel, quick in (("1M", 1 << 20, True), ("16M", 1 << 24, False))
]
