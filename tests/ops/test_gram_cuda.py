"""gram_matrix on CUDA: specific to its kernels, on a GPU if there is one and on the emulator."""

from __future__ import annotations

import pytest
import torch
from gram_cases import check, make
from reference import DTYPES, tf32_allowed

import fastnn.functional as FF
from fastnn import _dispatch
from fastnn.ops import _cuda_limits

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64, 50176), (1, 1500, 300), (8, 512, 784), (3, 1000, 2000)])
def test_large_shapes_match_float64(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(make(shape, dtype, "cuda"))


@pytest.mark.each_value
@pytest.mark.parametrize("tf32", [False, True])
def test_float32_on_tensor_cores(
    tf32: bool, cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_limits, "TENSOR_CORES_FROM", 0)
    monkeypatch.setattr(_cuda_limits, "TENSOR_CORES_SIDE", 0)
    with tf32_allowed(tf32):
        for shape in ((2, 40, 70), (1, 129, 130)):
            f = make(shape, torch.float32, cuda_device)
            if not tf32:
                check(f)
                continue
            g = FF.gram_matrix(f).cpu()
            assert torch.equal(g, g.mT)
            # Both factors are rounded by up to 2^-11.
            f64 = f.cpu().double()
            bound = 2.0**-10 * f64.abs() @ f64.abs().mT + 1e-5
            assert bool(((g.double() - f64 @ f64.mT).abs() <= bound).all())
