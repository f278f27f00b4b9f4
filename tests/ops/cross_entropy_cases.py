"""Cross-entropy against float64, shared by the tests of its kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn
from fastnn import functional


def assert_native(explanation: fastnn._explain.Explanation) -> None:
    assert [d.reason for d in explanation.decisions if d.reason is not None] == []


def check_cross_entropy(
    whole: Tensor, target: Tensor, device: torch.device, columns: slice = slice(None), **options: object
) -> None:
    """Loss and gradient of `whole[:, columns]` on `device` against torch's in float64 on the CPU.

    Rounding: a sum of C exponentials in float32 errs by about sqrt(C) eps of itself, the exponentials by
    1e-7 (1 + |x|) of theirs, both with room for the worst of many rows; storing adds half a unit of the
    dtype.
    """
    x, dtype = whole[:, columns], whole.dtype
    wide = x.double().detach().clone().requires_grad_()
    wide_options = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    wide_target = target.double() if target.is_floating_point() else target.long()
    want = F.cross_entropy(wide, wide_target, **wide_options)  # type: ignore[arg-type]
    dy = torch.randn(want.shape, dtype=torch.float64).to(dtype)
    (want_gradient,) = torch.autograd.grad(want, wide, dy.double())

    ours = whole.to(device, copy=True)[:, columns].requires_grad_()
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}

    def run() -> tuple[Tensor, Tensor]:
        loss = functional.cross_entropy(ours, target.to(device), **moved)  # type: ignore[arg-type]
        return loss.detach(), torch.autograd.grad(loss, ours, dy.to(device))[0]

    seen = fastnn.explain(run)
    assert_native(seen)
    loss, gradient = (t.double().cpu() for t in seen.result)
    compute = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    store = torch.finfo(dtype).eps
    rounding = 8 * compute * x.shape[1] ** 0.5 + 4 * compute * float(x.double().abs().max()) + 2 * store
    loss_size = float(want.detach().abs().max()) + 1
    assert float((loss - want.detach()).abs().max()) <= rounding * loss_size
    scale = float(want_gradient.abs().max())
    tiny = torch.finfo(dtype).smallest_normal * store
    assert float((gradient - want_gradient).abs().max()) <= rounding * scale + tiny
    again = run()
    assert all(torch.equal(a, b) for a, b in zip(again, seen.result, strict=True))
