"""The functions of csrc/core/vec_math.h and vec_special.h, on their own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastnn import _dispatch

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

# The bounds that vec_math.h and vec_special.h state.
EXP_ULP = LOG_ULP = LOG1P_ULP = 2.0
SIGMOID_ULP, TANH_ULP = 3.0, 0.9


def normal_cdf_ulp(x: Tensor) -> Tensor:
    return torch.where(x < 0, 7 + x * x / 2, 4.0)


def run(name: str, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    getattr(_dispatch.cpu.testing, name)(x, y)
    return y


def ulps(y: Tensor, reference: Tensor) -> Tensor:
    """Errors of float32 `y` in units of the last place of the float64 `reference`."""
    ulp = torch.maximum(2.0 ** (torch.floor(torch.log2(reference.abs())) - 23), torch.tensor(2.0**-149))
    return (y.double() - reference).abs() / ulp


def max_ulp(y: Tensor, reference: Tensor) -> float:
    return float(ulps(y, reference).max())


def test_exp_float32_error(isa: str) -> None:
    x = torch.linspace(-104.5, 88.7, 400_001)  # down to where the subnormal numbers end
    assert max_ulp(run("exp", x), x.double().exp()) <= EXP_ULP


def test_log_float32_error(isa: str) -> None:
    x = torch.cat(
        [torch.logspace(-44.5, 38.5, 200_001, dtype=torch.float64).float(), torch.linspace(0.5, 2, 200_001)]
    )
    x = x[(x != 1) & (x > 0) & x.isfinite()]
    assert max_ulp(run("log", x), x.double().log()) <= LOG_ULP


def test_log1p_stays_within_its_bound(isa: str) -> None:
    even = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    x = torch.cat([even, torch.logspace(-37, 0, 200_001, dtype=torch.float64)]).float()
    assert max_ulp(run("log1p", x[x > 0]), x[x > 0].double().log1p()) <= LOG1P_ULP
    x = torch.cat([even[::10], torch.logspace(-300, 0, 20_001, dtype=torch.float64)])
    reference = x.log1p()  # itself within one ulp
    assert ((run("log1p", x) - reference).abs() <= (LOG1P_ULP + 1) * 2.0**-52 * reference).all()
    assert run("log1p", torch.tensor([math.nan, 0.0])).isnan().tolist() == [True, False]


def around_zero(limit: float, dtype: torch.dtype, count: int) -> Tensor:
    """Evenly spaced numbers up to +-limit, and ever smaller ones."""
    even = torch.linspace(-limit, limit, count, dtype=torch.float64)
    small = torch.logspace(-30, 0, count // 4, dtype=torch.float64)
    return torch.cat([even, small, -small]).to(dtype)


def test_sigmoid_tanh_and_normal_cdf_float32_error(isa: str) -> None:
    x = around_zero(87, torch.float32, 400_001)
    assert max_ulp(run("sigmoid", x), x.double().sigmoid()) <= SIGMOID_ULP
    x = around_zero(12, torch.float32, 400_001)
    # Every number around the one where the formula changes, too.
    x = torch.cat([x[x != 0], torch.arange(0x3F00_0000, 0x3F12_0000, dtype=torch.int32).view(torch.float32)])
    assert max_ulp(run("tanh", x), x.double().tanh()) <= TANH_ULP
    x = around_zero(12.9, torch.float32, 400_001)
    excess = ulps(run("normal_cdf", x), torch.special.erfc(-x.double() / 2**0.5) / 2) - normal_cdf_ulp(
        x.double()
    )
    assert excess.max() <= 0


def test_sigmoid_tanh_and_normal_cdf_float64_error(isa: str) -> None:
    # The references are only accurate to an ulp or two; rounding x / sqrt(2) moves the tail by x^2 / 2.
    eps = torch.finfo(torch.float64).eps
    x = around_zero(700, torch.float64, 20_001)
    reference = x.sigmoid()
    assert ((run("sigmoid", x) - reference).abs() <= (SIGMOID_ULP + 1) * eps * reference).all()
    x = around_zero(22, torch.float64, 20_001)
    reference = x.tanh()
    assert ((run("tanh", x) - reference).abs() <= (TANH_ULP + 1) * eps * reference.abs()).all()
    x = around_zero(37, torch.float64, 20_001)
    reference = torch.special.erfc(-x / 2**0.5) / 2
    bound = (normal_cdf_ulp(x) + 2 + x * x / 2) * eps * reference
    assert ((run("normal_cdf", x) - reference).abs() <= bound).all()


@pytest.mark.parametrize(("name", "low", "high"), [("exp", -708.0, 709.0), ("log", 1e-300, 1e300)])
def test_float64_stays_within_its_bound(isa: str, name: str, low: float, high: float) -> None:
    if name == "exp":
        x = torch.linspace(low, high, 20_001, dtype=torch.float64)
    else:
        x = torch.logspace(math.log10(low), math.log10(high), 20_001, dtype=torch.float64)
        x = x[(x - 1).abs() > 1e-3]
    reference = getattr(torch, name)(x)  # itself within one ulp: one ulp is up to eps of the value
    bound = (EXP_ULP + 1) * torch.finfo(torch.float64).eps * reference.abs()
    assert bool(((run(name, x) - reference).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_values_give_their_limits(isa: str, dtype: torch.dtype) -> None:
    inf, nan = math.inf, math.nan
    x = torch.tensor([nan, inf, -inf, 0.0, -0.0, 1e30, -1e30], dtype=dtype)
    expected = torch.tensor([nan, inf, 0.0, 1.0, 1.0, inf, 0.0], dtype=dtype)
    torch.testing.assert_close(run("exp", x), expected, rtol=0, atol=0, equal_nan=True)
    x = torch.tensor([nan, inf, -inf, 0.0, -0.0, -1.0, 1.0], dtype=dtype)
    expected = torch.tensor([nan, inf, nan, -inf, -inf, nan, 0.0], dtype=dtype)
    torch.testing.assert_close(run("log", x), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", [math.nan, 1.0, 0.0, 0.5, 0.5, 1.0, 0.0]),
        ("tanh", [math.nan, 1.0, -1.0, 0.0, -0.0, 1.0, -1.0]),
        ("normal_cdf", [math.nan, 1.0, 0.0, 0.5, 0.5, 1.0, 0.0]),
    ],
)
def test_special_values_of_the_bounded(
    isa: str, dtype: torch.dtype, name: str, expected: list[float]
) -> None:
    inf, nan = math.inf, math.nan
    y = run(name, torch.tensor([nan, inf, -inf, 0.0, -0.0, 1e30, -1e30], dtype=dtype))
    torch.testing.assert_close(y, torch.tensor(expected, dtype=dtype), rtol=1e-7, atol=0, equal_nan=True)
    assert torch.equal(y.signbit()[1:], torch.tensor(expected).signbit()[1:])


def test_outside_the_range_of_normal_numbers(isa: str) -> None:
    assert run("exp", torch.tensor([-103.9, 89.0])).tolist()[1] == math.inf
    assert run("exp", torch.tensor([-746.0, 710.0], dtype=torch.float64)).tolist() == [0.0, math.inf]
