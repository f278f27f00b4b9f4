"""exp and log of csrc/core/vec_math.h, by themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastnn import _backend

pytestmark = pytest.mark.skipif(_backend.cpu is None, reason="needs the compiled module")

# The bounds that vec_math.h states.
EXP_ULP = LOG_ULP = 2.0


def run(name: str, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    getattr(_backend.cpu, name)(x, y)
    return y


def max_ulp(y: Tensor, reference: Tensor) -> float:
    """Largest error of float32 `y` in units of the last place of the float64 `reference`."""
    ulp = torch.maximum(2.0 ** (torch.floor(torch.log2(reference.abs())) - 23), torch.tensor(2.0**-149))
    return float(((y.double() - reference).abs() / ulp).max())


def test_exp_float32_error(isa: str) -> None:
    x = torch.linspace(-104.5, 88.7, 400_001)  # down to where the subnormal numbers end
    assert max_ulp(run("exp", x), x.double().exp()) <= EXP_ULP


def test_log_float32_error(isa: str) -> None:
    x = torch.cat(
        [torch.logspace(-44.5, 38.5, 200_001, dtype=torch.float64).float(), torch.linspace(0.5, 2, 200_001)]
    )
    x = x[(x != 1) & (x > 0) & x.isfinite()]
    assert max_ulp(run("log", x), x.double().log()) <= LOG_ULP


@pytest.mark.parametrize(("name", "low", "high"), [("exp", -708.0, 709.0), ("log", 1e-300, 1e300)])
def test_float64_error(isa: str, name: str, low: float, high: float) -> None:
    if name == "exp":
        x = torch.linspace(low, high, 20_001, dtype=torch.float64)
    else:
        x = torch.logspace(math.log10(low), math.log10(high), 20_001, dtype=torch.float64)
        x = x[(x - 1).abs() > 1e-3]
    reference = getattr(torch, name)(x)  # itself within one ulp: one ulp is up to eps of the value
    bound = (EXP_ULP + 1) * torch.finfo(torch.float64).eps * reference.abs()
    assert bool(((run(name, x) - reference).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_values(isa: str, dtype: torch.dtype) -> None:
    inf, nan = math.inf, math.nan
    x = torch.tensor([nan, inf, -inf, 0.0, -0.0, 1e30, -1e30], dtype=dtype)
    expected = torch.tensor([nan, inf, 0.0, 1.0, 1.0, inf, 0.0], dtype=dtype)
    torch.testing.assert_close(run("exp", x), expected, rtol=0, atol=0, equal_nan=True)
    x = torch.tensor([nan, inf, -inf, 0.0, -0.0, -1.0, 1.0], dtype=dtype)
    expected = torch.tensor([nan, inf, nan, -inf, -inf, nan, 0.0], dtype=dtype)
    torch.testing.assert_close(run("log", x), expected, rtol=0, atol=0, equal_nan=True)


def test_outside_the_range_of_normal_numbers(isa: str) -> None:
    assert run("exp", torch.tensor([-103.9, 89.0])).tolist()[1] == math.inf
    assert run("exp", torch.tensor([-746.0, 710.0], dtype=torch.float64)).tolist() == [0.0, math.inf]
