"""Values and slopes of the activations at numbers of all sizes, within the bounds of activation_math.h."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

import fastnn.functional as FF
from fastnn import _dispatch
from fastnn.ops.linear import ACTIVATIONS, torch_activation

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

NAMES = [name for name in ACTIVATIONS if name is not None]
LINEAR = 2 * math.sqrt(2 / math.pi)  # gelu_tanh(z) = z sigmoid(LINEAR z (1 + CUBIC z^2))
CUBIC = 0.044715
FLUSHED = {torch.float32: math.exp(-80), torch.float64: math.exp(-700)}
WIDTH = 16  # rows that fill vectors of every length


def everywhere(dtype: torch.dtype) -> Tensor:
    """Numbers of every size, subnormal ones too, and many where the activations curve and saturate."""
    if dtype == torch.float32:
        bits = torch.arange(-(2**31), 2**31, 65_537).to(torch.int32).view(dtype)
        ranges = [(14, 120_001), (110, 60_001)]
    else:
        bits = (torch.arange(-(2**15), 2**15) * 2**48 + 0x123456789ABC).view(dtype)
        ranges = [(5, 20_001), (40, 20_001), (760, 20_001)]
    x = torch.cat([bits, *(torch.linspace(-end, end, count, dtype=dtype) for end, count in ranges)])
    x = x[x.isfinite()]
    return x[: len(x) // WIDTH * WIDTH]


def factor(name: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """P(z) and P'(z) of an activation z P(z)."""
    if name == "gelu":
        return torch.special.erfc(-z / 2**0.5) / 2, (z * z / -2).exp() / math.sqrt(2 * math.pi)
    w, inner = (z, 1.0) if name == "silu" else (LINEAR * (z + CUBIC * z**3), LINEAR * (1 + 3 * CUBIC * z * z))
    p, both = w.sigmoid(), w.sigmoid() * (-w).sigmoid()
    return p, torch.where(both > 0, both * inner, 0.0)


@functools.cache
def expected(name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs, values and slopes in float64, and the bounds of their errors."""
    x, info = everywhere(dtype), torch.finfo(dtype)
    eps = info.eps
    z = x.double()
    # In float64 the reference has errors of its own, of about one eps for the same reasons.
    more = 1 if dtype == torch.float64 else 0
    if name == "relu":
        return x, z.clamp_min(0), (z > 0).double(), torch.zeros_like(z), torch.zeros_like(z)
    if name == "sigmoid":
        y, slope = z.sigmoid(), z.sigmoid() * (-z).sigmoid()
        value_bound, slope_bound = (2 + more) * eps * y, (4 + more) * eps * y
    elif name == "tanh":
        e = (-2 * z.abs()).exp()
        y, slope = z.tanh(), 4 * e / (1 + e) ** 2
        value_bound, slope_bound = (0.75 + more) * eps * y.abs(), torch.full_like(z, (1 + more) * eps)
    else:
        p, dp = factor(name, z)
        rest = torch.where(dp > 0, z * dp, 0.0)
        y, slope = z * p, p + rest
        growth = (4 + more) * eps * (1 + z.clamp_max(0) ** 2)
        value_bound, slope_bound = growth * y.abs(), growth * (p + rest.abs())
    # A subnormal result is rounded to a multiple of the smallest one.
    below = torch.full_like(z, info.smallest_normal * eps).masked_fill(z < -1, FLUSHED[dtype])
    # Where the square overflows, the result is 0.
    value_bound, slope_bound = (torch.where(z < -1e9, 0.0, b) + below for b in (value_bound, slope_bound))
    return x, y, slope, value_bound, slope_bound


def run(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The values, and the slopes that backward multiplies by."""
    width = WIDTH if len(x) % WIDTH == 0 else 1
    rows = x.view(-1, width).clone().requires_grad_()
    y = FF.linear(rows, torch.eye(width, dtype=x.dtype), None, name)
    y.backward(torch.ones_like(y))
    assert rows.grad is not None
    return y.detach().flatten().double(), rows.grad.flatten().double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_errors_stay_within_the_stated_bounds(name: str, dtype: torch.dtype, isa: str) -> None:
    x, value, slope, value_bound, slope_bound = expected(name, dtype)
    y, dx = run(name, x)
    excess = (y - value).abs() - value_bound
    assert not excess.isnan().any()
    assert excess.max() <= 0, f"value at {x[excess.argmax()]}: {y[excess.argmax()]}"
    if name == "gelu_tanh":  # where the square overflows its slope is NaN
        fits = (x * x).isfinite()
        dx, slope, slope_bound, x = dx[fits], slope[fits], slope_bound[fits], x[fits]
    excess = (dx - slope).abs() - slope_bound
    assert not excess.isnan().any()
    assert excess.max() <= 0, f"slope at {x[excess.argmax()]}: {dx[excess.argmax()]}"


def test_the_left_tail_of_the_slope_of_silu(isa: str) -> None:
    x = torch.linspace(-14, -3, 200_000)
    z = x.double()
    p, dp = factor("silu", z)
    slope = p + z * dp
    assert ((run("silu", x)[1] - slope).abs() <= 2.5 * torch.finfo(x.dtype).eps * slope.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_infinity_and_nan_give_their_limits(name: str, dtype: torch.dtype, isa: str) -> None:
    """Compared with torch's formulas: infinity and NaN, and the largest and smallest numbers."""
    info = torch.finfo(dtype)
    ends = [math.inf, info.max, info.smallest_normal, info.smallest_normal * info.eps, 0.0]
    for end in (*ends, *(-end for end in ends), math.nan):
        x = torch.tensor([end], dtype=dtype)
        y, dx = run(name, x)
        z = x.clone().requires_grad_()
        torch_activation(z, name).backward()
        want, slope = torch_activation(x, name), z.grad
        assert slope is not None
        if name == "gelu" and end == math.inf:  # torch has NaN where it is vectorised
            want, slope = x, torch.full_like(x, math.nan)
        torch.testing.assert_close(y, want.double(), rtol=info.eps, atol=info.tiny * info.eps, equal_nan=True)
        torch.testing.assert_close(dx, slope.double(), rtol=info.eps, atol=0, equal_nan=True)
