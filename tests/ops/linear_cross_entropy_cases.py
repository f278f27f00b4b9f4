"""Examples of a linear classifier with its loss, and the bounds of their errors, for every device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnn import _dispatch
from fastnn import functional as FF
from fastnn.ops.linear_cross_entropy import linear_cross_entropy_torch

CHUNK = 8
CLASSES = 67  # more than the lanes of a vector, and not a multiple of them
FEATURES = 13
FEW = 5


def example(
    rows: int,
    classes: int,
    dtype: torch.dtype,
    bias: bool = True,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    tensors = {
        "input": torch.randn(rows, FEATURES).to(dtype),
        "linear_weight": (torch.randn(classes, FEATURES) / 2).to(dtype),
        "target": torch.randint(classes, (rows,)),
        "linear_bias": torch.randn(classes).to(dtype) if bias else None,
    }
    return {name: None if t is None else t.to(device) for name, t in tensors.items()}


def wide(values: dict[str, Any]) -> dict[str, Any]:
    """The same on the CPU, in float64."""
    found = {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in values.items()}
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in found.items()}


def gradients(f: Any, tensors: dict[str, Any], grad: Tensor | None, options: dict[str, Any]) -> list[Any]:
    """Loss, then the gradients of input, weight and bias."""
    leaves = {
        k: t.detach().requires_grad_() if t is not None and t.is_floating_point() else t
        for k, t in tensors.items()
    }
    loss = f(**leaves, **options)
    wanted = [t for t in leaves.values() if t is not None and t.requires_grad]
    grad = torch.ones_like(loss) if grad is None else grad.to(loss)
    return [loss.detach(), *torch.autograd.grad(loss, wanted, grad)]


def check(tensors: dict[str, Any], **options: Any) -> None:
    """Compare natively computed loss and gradients with torch's in float64 on the CPU.

    Logits (sums of K products), their exponentials and gradients are rounded to the dtype, with an error of a
    few eps of the logits' magnitude for each row; products of the gradients add up over rows and classes as
    the sum of the magnitudes. 16-bit dtypes: that eps dominates; the float32 sums are below it.
    """
    dtype = tensors["input"].dtype
    rowwise = options.get("reduction") == "none"
    grad = torch.rand(tensors["target"].shape) + 0.5 if rowwise else torch.tensor(1.5)
    grad = grad.to(dtype)
    decisions: list[_dispatch.Decision] = []
    with _dispatch.recording(decisions.append):
        actual = gradients(FF.linear_cross_entropy, tensors, grad, options)
    if _dispatch.cpu is not None:
        assert {d.reason for d in decisions} == {None}
    reference = wide(tensors)
    expected = gradients(linear_cross_entropy_torch, reference, grad, wide(options))
    eps = torch.finfo(dtype).eps
    x, w = reference["input"], reference["linear_weight"]
    logit = 1 + float((x.abs() @ w.abs().t()).amax()) + (0 if reference["linear_bias"] is None else 4)
    # Of a row's gradient: terms of at most 2 w_y, changed by the relative error of its exponentials.
    rows = max(len(x), 1)
    per_row = grad.abs().max().item() * 2 * 2 / (rows if options.get("reduction", "mean") == "mean" else 1)
    limits = [
        logit * 4 * (rows if options.get("reduction") == "sum" else 1),
        per_row * logit * float(w.abs().sum(0).max()),
        per_row * logit * float(x.abs().sum(0).max()),
        per_row * logit * rows,
    ]
    for a, e, limit in zip(actual, expected, limits, strict=False):
        assert a.dtype == dtype
        assert a.shape == e.shape
        torch.testing.assert_close(a.cpu().double(), e, rtol=2 * eps, atol=eps * limit / 4, equal_nan=True)
    with torch.no_grad():
        loss = FF.linear_cross_entropy(**tensors, **options)
    assert torch.equal(loss, actual[0]) or bool(loss.isnan().all())
