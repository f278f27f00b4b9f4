"""Classifier and loss in one op, with all gradients, against torch's linear followed by cross_entropy.

Shapes are N x K x C: N rows of K features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn.functional

from ..case import Case, Workload


def torch_loss(x: Tensor, w: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, w), target)


def _run(
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, w: Tensor, target: Tensor
) -> tuple[Tensor, ...]:
    loss = loss_of(x, w, target)
    return loss, *torch.autograd.grad(loss, (x, w))


def _build(n: int, k: int, c: int) -> Workload:
    x = torch.randn(n, k, requires_grad=True)
    w = (torch.randn(c, k) / k**0.5).requires_grad_()
    target = torch.randint(c, (n,))
    calls = {
        "fastnn": partial(_run, fastnn.functional.linear_cross_entropy, x, w, target),
        "torch": partial(_run, torch_loss, x, w, target),
    }
    # Logits of a few units, sums of k products, then sums over the classes and the rows.
    return Workload(calls, tolerance=64 * torch.finfo(torch.float32).eps)


OP = "linear_cross_entropy forward+backward"
LARGE = (1024, 768, 32000)

CASES = [
    Case(
        OP,
        f"{n}x{k}x{c}",
        partial(_build, n, k, c),
        flops=3 * 2 * n * k * c,
        quick=quick,
    )
    for n, k, c, quick in ((64, 128, 10, True), (*LARGE, False))
]
