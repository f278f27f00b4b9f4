"""gram_matrix on CUDA: against float64, on a GPU where there is one and on the emulator."""

from __future__ import annotations

import pytest
import torch
from reference import DTYPES, assert_close_sum
from torch import Tensor

import fastnn
import fastnn.functional as FF
from cuda_emulation import ORDERS, Emulation
from fastnn import _backend, _cuda_limits

pytestmark = pytest.mark.skipif(_backend.cpu is None, reason="needs the compiled module")

# B, C, L: degenerate; around tiles of 32, 64 and 128, one and several of them; L that is split.
SHAPES = [
    (1, 1, 1),
    (2, 3, 0),
    (0, 3, 4),
    (2, 0, 4),
    (3, 31, 33),
    (2, 33, 15),
    (1, 64, 1000),
    (1, 65, 128),
    (1, 129, 130),
    (2, 20, 300),
    (16, 40, 16),
]


def check(f: Tensor, device: torch.device, normalize: bool = False) -> list[Tensor]:
    """Forward and gradient of (B, C, L) features against float64."""
    dtype = f.dtype
    ours = f.detach() if device.type == "cpu" else f.to(device)  # dense layouts stay what they are
    ours.requires_grad_()
    dg = torch.randn(f.shape[0], f.shape[1], f.shape[1], dtype=torch.float64).to(dtype)

    def run() -> list[Tensor]:
        g = FF.gram_matrix(ours, normalize)
        return [g.detach(), torch.autograd.grad(g, ours, dg.to(device))[0]]

    seen = fastnn.explain(run)
    assert [(d.op, d.reason) for d in seen.decisions] == [("gram_matrix", None), ("gram_backward", None)]
    g, df = (t.cpu() for t in seen.result)
    f64 = f.double()
    scale = 1 / (f.shape[1] * f.shape[2]) if normalize else 1.0
    assert_close_sum(g, f64 @ f64.mT * scale, f64.abs() @ f64.abs().mT * scale, f.shape[2])
    assert torch.equal(g, g.mT)
    both = dg.double() + dg.double().mT
    magnitude = both.abs() @ f64.abs() * scale
    if dtype.itemsize == 2:  # dG + dG^T is rounded once before the product
        magnitude = magnitude * (1 + torch.finfo(dtype).eps / torch.finfo(torch.float32).eps)
    assert_close_sum(df, both @ f64 * scale, magnitude, f.shape[1])
    return seen.result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, int, int], dtype: torch.dtype, cuda_device: torch.device) -> None:
    f = torch.randn(shape, dtype=torch.float64).to(dtype)
    check(f, cuda_device)
    if f.numel():
        check(f, cuda_device, normalize=True)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64, 50176), (1, 1500, 300), (8, 512, 784), (3, 1000, 2000)])
def test_large_shapes(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(torch.randn(shape, dtype=torch.float64).to(dtype), torch.device("cuda"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, cuda_device: torch.device) -> None:
    whole = torch.randn(3, 80, 161, dtype=torch.float64).to(dtype)
    for f in (
        whole[:, :72, 1:].transpose(1, 2)[:, :70],  # channels last
        whole[:, 1::2, 1:150:3],
        whole[:, :40, 1:],
        whole[:1, :40, :160].expand(2, 40, 160),
    ):
        check(f, cuda_device)


def test_nothing_to_sum(cuda_device: torch.device) -> None:
    f = torch.randn(3, 0, device=cuda_device)
    assert torch.equal(FF.gram_matrix(f).cpu(), torch.zeros(3, 3))
    assert FF.gram_matrix(f, normalize=True).isnan().all()


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_on_tensor_cores(
    tf32: bool, cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_limits, "TENSOR_CORES_FROM", 0)
    monkeypatch.setattr(_cuda_limits, "TENSOR_CORES_SIDE", 0)
    monkeypatch.setattr(_cuda_limits, "_tf32_allowed", lambda: tf32)
    for shape in ((2, 40, 70), (1, 129, 130)):
        f = torch.randn(shape)
        if not tf32:
            check(f, cuda_device)
            continue
        g = FF.gram_matrix(f.to(cuda_device)).cpu()
        assert torch.equal(g, g.mT)
        # Both factors are rounded by up to 2^-11.
        bound = 2.0**-10 * f.double().abs() @ f.double().abs().mT + 1e-5
        assert bool(((g.double() - f.double() @ f.double().mT).abs() <= bound).all())


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(special: float, dtype: torch.dtype, cuda_device: torch.device) -> None:
    f = torch.randn(70, 33).to(dtype)
    f[7, 32] = special
    finite = torch.isfinite(FF.gram_matrix(f.to(cuda_device))).cpu()
    assert not finite[7].any()
    assert not finite[:, 7].any()
    assert finite.sum() == 69 * 69


def test_same_bits_in_every_order_of_threads(emulated_cuda: Emulation) -> None:
    f, dg = torch.randn(2, 50, 300, requires_grad=True), torch.randn(2, 50, 50)
    runs = []
    for order in ORDERS:
        emulated_cuda.checks.set_order(*order)
        g = FF.gram_matrix(f)
        runs.append([g.detach(), torch.autograd.grad(g, f, dg)[0]])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))
