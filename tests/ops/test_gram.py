"""gram_matrix: values, gradients, layouts, edges, errors, on every CPU variant."""

from __future__ import annotations

import pytest
import torch
from reference import DTYPES, assert_close_sum, layouts
from torch import Tensor

import fastnn
import fastnn.functional as FF
from fastnn import _backend

SHAPES = [
    (1, 1),
    (3, 7),
    (8, 48),
    (9, 17),
    (31, 33),
    (49, 100),
    (97, 513),
    (130, 64),
    (2, 1500),
    (5, 0),
    (0, 5),
]


def check_all(f: Tensor, dg: Tensor, normalize: bool) -> None:
    """Forward and gradient of a (C, L) input against float64."""
    f = f.detach().requires_grad_()
    g = FF.gram_matrix(f, normalize)
    f64 = f.detach().double()
    scale = 1 / f.numel() if normalize else 1.0
    expected, magnitude = f64 @ f64.t() * scale, f64.abs() @ f64.abs().t() * scale
    assert g.shape == (f.shape[0], f.shape[0])
    assert g.dtype == f.dtype
    assert_close_sum(g.detach(), expected, magnitude, f.shape[1])
    assert torch.equal(g, g.t())

    g.backward(dg)
    # dG + dG^T is rounded to the storage type once before the product.
    both = dg.double() + dg.double().t()
    magnitude = both.abs() @ f64.abs() * scale
    assert f.grad is not None
    store_eps = torch.finfo(f.dtype).eps
    rounded = (
        magnitude * (1 + store_eps / torch.finfo(torch.float32).eps) if f.dtype.itemsize == 2 else magnitude
    )
    assert_close_sum(f.grad, both @ f64 * scale, rounded, f.shape[0])


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_float64(isa: str, dtype: torch.dtype, normalize: bool) -> None:
    for c, length in SHAPES:
        if normalize and c * length == 0:
            continue
        f = torch.randn(c, length, dtype=torch.float64).to(dtype)
        check_all(f, torch.randn(c, c, dtype=torch.float64).to(dtype), normalize)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout(isa: str, dtype: torch.dtype) -> None:
    for f in layouts(21, 70, dtype).values():
        for dg in layouts(21, 21, dtype).values():
            check_all(f, dg, True)


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 4, 2, 6), (1, 50, 3), (0, 3, 4), (2, 3, 0), (2, 0, 4)])
@pytest.mark.parametrize("normalize", [False, True])
def test_batches(isa: str, shape: tuple[int, ...], normalize: bool) -> None:
    f = torch.randn(shape)
    if len(shape) == 4:
        f = f.contiguous(memory_format=torch.channels_last)
    flat = f.double().flatten(2)
    expected = flat @ flat.mT / (flat.shape[1] * flat.shape[2] if normalize else 1)
    torch.testing.assert_close(
        FF.gram_matrix(f, normalize).double(), expected, atol=1e-5, rtol=1e-5, equal_nan=True
    )


def test_no_positions_gives_zeros(isa: str) -> None:
    assert torch.equal(FF.gram_matrix(torch.randn(3, 0)), torch.zeros(3, 3))
    assert FF.gram_matrix(torch.randn(3, 0), normalize=True).isnan().all()


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (2, 3, 2, 2), (0, 3, 4), (3, 0)])
@pytest.mark.parametrize("normalize", [False, True])
def test_gradcheck(shape: tuple[int, ...], normalize: bool) -> None:
    if normalize and 0 in shape[1:]:
        pytest.skip("0 / 0")
    f = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: FF.gram_matrix(f, normalize), (f,))
    assert torch.autograd.gradgradcheck(lambda f: FF.gram_matrix(f, normalize), (f,))


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_special_values_touch_their_row_and_column(isa: str, special: float) -> None:
    f = torch.randn(20, 33)
    f[7, 32] = special
    finite = torch.isfinite(FF.gram_matrix(f))
    assert not finite[7].any()
    assert not finite[:, 7].any()
    assert finite.sum() == 19 * 19


def test_same_bits_for_every_thread_count(isa: str) -> None:
    threads = torch.get_num_threads()
    f = torch.randn(203, 1100)
    results = []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            leaf = f.clone().requires_grad_()
            g = FF.gram_matrix(leaf)
            g.square().sum().backward()
            results.append((g.detach(), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for g, grad in results[1:]:
        assert torch.equal(g, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4, 5)])
def test_wrong_number_of_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match=r"gram_matrix: input must have shape \(C, L\)"):
        FF.gram_matrix(torch.randn(shape))


def test_float16_mean_does_not_overflow_on_either_path(isa: str) -> None:
    f = torch.full((4, 4096), 10.0, dtype=torch.float16)
    assert FF.gram_matrix(f, normalize=True).unique().item() == 25
    with fastnn.disabled():
        assert FF.gram_matrix(f, normalize=True).unique().item() == 25


def test_disabled_gives_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    f = torch.randn(4, 9)
    monkeypatch.setattr(_backend, "cpu", object())  # any native call would fail
    with fastnn.disabled():
        torch.testing.assert_close(FF.gram_matrix(f, True), f @ f.t() / 36)
