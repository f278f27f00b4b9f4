"""Gram matrix F Fᵀ against torch's matrix product."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

import fastnn.functional

from ..case import Case, Foreign, Workload
from ..peers import onednn


def _torch_gram(features: Tensor) -> Tensor:
    return features @ features.mT


def _build(m: int, k: int, backward: bool) -> Workload:
    features, dg = torch.randn(m, k, requires_grad=True), torch.randn(m, m)
    calls = {}
    for name, gram in (("fastnn", fastnn.functional.gram_matrix), ("torch", _torch_gram)):
        forward = partial(gram, features)
        calls[name] = (
            partial(torch.autograd.grad, forward(), features, dg, retain_graph=True) if backward else forward
        )
    # Random rounding errors of a sum of k terms grow like the square root of k.
    summed = 2 * m if backward else k
    tolerance = 8 * math.sqrt(summed) * torch.finfo(torch.float32).eps
    if backward:
        return Workload(calls, tolerance)
    plain = features.detach()
    optional = {onednn.NAME: lambda: partial(onednn.linear, plain, plain)}
    return Workload(calls, tolerance, optional=optional, foreign=Foreign("gram", {"features": plain}))


def _useful(m: int) -> str:
    return f"counted full; one triangle is {100 * (m + 1) / (2 * m):.0f}% of it"


CASES = [
    Case(
        f"gram {direction}",
        f"{m}x{k}",
        partial(_build, m, k, backward),
        flops=2 * m * m * k,
        traffic=4 * (m * m + (2 if backward else 1) * m * k),
        note="" if backward else _useful(m),
        quick=quick,
    )
    for direction, backward in (("forward", False), ("backward", True))
    for m, k, quick in ((64, 12544, True), (256, 3136, False), (512, 784, False))
]
