"""Cross-entropy with class indices, forward and backward together: a fused one does both in one pass.

Compulsory: the logits and the targets are read once, the gradient is written once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn.functional

from ..case import Case, Foreign, Workload


def _run(cross_entropy: Any, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    loss = cross_entropy(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss, gradient


def _build(rows: int, classes: int) -> Workload:
    logits = torch.randn(rows, classes, requires_grad=True)
    target = torch.randint(classes, (rows,))
    calls = {
        "fastnn": partial(_run, fastnn.functional.cross_entropy, logits, target),
        "torch": partial(_run, F.cross_entropy, logits, target),
    }
    # exp and log of a few ulp, sums of up to `classes` and `rows` terms.
    foreign = Foreign("cross_entropy", {"logits": logits, "target": target})
    return Workload(calls, tolerance=64 * torch.finfo(torch.float32).eps, foreign=foreign)


CASES = [
    Case(
        "cross_entropy forward+backward",
        f"{rows}x{classes}",
        partial(_build, rows, classes),
        bytes=rows * (2 * classes * 4 + 8),
        quick=quick,
    )
    for rows, classes, quick in ((64, 10, True), (256, 100, False), (4096, 1000, False), (512, 32000, False))
]
