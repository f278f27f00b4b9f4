"""Cross-entropy against torch in float64 on the CPU, for every kernel, wherever its tensors are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from every_kernel import emulating
from fastnn import _dispatch
from fastnn import functional as FF
from fastnn.ops.cross_entropy import cross_entropy_torch

# Per-element rounding: input to the exponential, exponential, sum, product and the store are some eps each,
# and the sums over classes are blocked so that they add a few more. Measured: below 4.
ROUNDINGS = 8


def wide(value: Any) -> Any:
    """A tensor on the CPU, floating point in float64; anything else unchanged."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().cpu().double() if value.is_floating_point() else value.cpu()


def eps_of(x: Tensor) -> float:
    """The relative error that values made of the logits `x` may have, stored in their dtype."""
    # In float64 the reference rounds too, and it sums the classes of images one after the other.
    roundings = float(ROUNDINGS * (8 if x.dtype == torch.float64 else 1))
    if x.is_cuda or emulating():
        # exp(-d) is 2^(-d log2(e)) of a rounded product (csrc/ops/cross_entropy/moments.cuh): 1.5 d + 2 eps.
        # Averaged with the exponentials as weights d is at most their entropy, which is at most log(C).
        roundings += 2 * math.log(x.shape[min(1, x.dim() - 1)])
    return torch.finfo(x.dtype).eps * roundings


def assert_near(actual: Tensor, expected: Tensor, x: Tensor, magnitude: float) -> None:
    """Both within some eps of the largest term, and 16-bit subnormals within one step."""
    dtype = torch.finfo(x.dtype)
    bound = eps_of(x) * magnitude + dtype.eps * dtype.tiny
    torch.testing.assert_close(wide(actual), expected, rtol=0, atol=bound, equal_nan=True)


def check(input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> None:
    """Native loss and gradient, with an incoming gradient that is not 1, against torch's."""
    x = input.detach().requires_grad_()
    decisions: list[_dispatch.Decision] = []
    with _dispatch.recording(decisions.append):
        loss = FF.cross_entropy(x, target, weight, **options)
        grad = torch.full_like(loss, 1.5) if loss.dim() == 0 else torch.rand_like(loss) + 0.5
        (gradient,) = torch.autograd.grad(loss, x, grad)
    if _dispatch.cpu is not None:
        assert {d.reason for d in decisions} == {None}
    leaf = wide(input).requires_grad_()
    expected = cross_entropy_torch(
        leaf, wide(target).long() if target.dtype == torch.uint8 else wide(target), wide(weight), **options
    )
    (expected_gradient,) = torch.autograd.grad(expected, leaf, wide(grad).expand_as(expected))
    expected = expected.detach()
    assert loss.dtype == gradient.dtype == input.dtype
    assert gradient.shape == input.shape
    # However small the loss: the logarithm of a sum of at least 1 is taken once per row.
    rows = input.numel() / input.shape[min(1, input.dim() - 1)]
    reduction = options.get("reduction", "mean")
    floor = rows if reduction == "sum" else 1.0
    size = max(float(expected.abs().max()), floor)
    assert_near(loss, expected, x, size)
    # The gradient subtracts terms up to 1 (times the weights) of a row; with few classes they cancel.
    terms = 3.0 / (rows if reduction == "mean" else 1)
    assert_near(gradient, expected_gradient, x, max(float(expected_gradient.abs().max()), terms))
    again = FF.cross_entropy(x, target, weight, **options)
    assert torch.equal(again, loss)
    assert torch.equal(torch.autograd.grad(again, x, grad)[0], gradient)
    # On CUDA another number of blocks may share a row where no gradient is written.
    assert_near(FF.cross_entropy(x.detach(), target, weight, **options), expected, x, size)
