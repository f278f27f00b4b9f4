"""gram_matrix: values, gradients, layouts, edges, errors, on every CPU variant and with the CUDA kernels."""

from __future__ import annotations

import pytest
import torch
from gram_cases import SHAPES, check, make
from reference import DTYPES, layouts
from torch import Tensor

import fastnn
import fastnn.functional as FF
from every_kernel import assert_reproducible, emulating


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape: tuple[int, ...], dtype: torch.dtype, every_device: torch.device) -> None:
    f = make(shape, dtype, every_device)
    check(f)
    if f.numel():
        check(f, normalize=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_matches_float64(dtype: torch.dtype, every_device: torch.device) -> None:
    gradients = layouts(21, 21, dtype, every_device)
    for name, f in layouts(21, 70, dtype, every_device).items():
        for other, dg in gradients.items():
            if not emulating() or other in (name, "transposed"):
                check(f, True, dg)
    whole = make((3, 80, 161), dtype, every_device)
    for f in (
        whole[:, :72, 1:].transpose(1, 2)[:, :70],  # channels last
        whole[:, 1::2, 1:150:3],
        whole[:, :40, 1:],
        whole[:1, :40, :160].expand(2, 40, 160),
    ):
        check(f)


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 4, 2, 6), (1, 50, 3), (0, 3, 4), (2, 3, 0), (2, 0, 4)])
@pytest.mark.parametrize("normalize", [False, True])
def test_batches_match_float64(shape: tuple[int, ...], normalize: bool, every_device: torch.device) -> None:
    f = torch.randn(shape, device=every_device)
    if len(shape) == 4:
        f = f.contiguous(memory_format=torch.channels_last)
    flat = f.cpu().double().flatten(2)
    expected = flat @ flat.mT / (flat.shape[1] * flat.shape[2] if normalize else 1)
    torch.testing.assert_close(
        FF.gram_matrix(f, normalize).cpu().double(), expected, atol=1e-5, rtol=1e-5, equal_nan=True
    )


def test_no_positions_gives_zeros(every_device: torch.device) -> None:
    f = torch.randn(3, 0, device=every_device)
    assert torch.equal(FF.gram_matrix(f).cpu(), torch.zeros(3, 3))
    assert FF.gram_matrix(f, normalize=True).isnan().all()


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (2, 3, 2, 2), (0, 3, 4), (3, 0)])
@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_pass_gradcheck(shape: tuple[int, ...], normalize: bool, device: torch.device) -> None:
    if normalize and 0 in shape[1:]:
        pytest.skip("0 / 0")
    f = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: FF.gram_matrix(f, normalize), (f,))
    assert torch.autograd.gradgradcheck(lambda f: FF.gram_matrix(f, normalize), (f,))


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_touch_their_row_and_column(
    special: float, dtype: torch.dtype, every_device: torch.device
) -> None:
    f = make((70, 33), dtype, every_device)
    f[7, 32] = special
    finite = torch.isfinite(FF.gram_matrix(f))
    assert not finite[7].any()
    assert not finite[:, 7].any()
    assert finite.sum() == 69 * 69


def test_the_same_bits_every_time(every_device: torch.device) -> None:
    shape = (2, 50, 300) if emulating() else (1, 203, 1100)
    f = torch.randn(shape, device=every_device, requires_grad=True)
    dg = torch.randn(*shape[:2], shape[1], device=every_device)

    def run() -> list[Tensor]:
        g = FF.gram_matrix(f)
        return [g.detach(), torch.autograd.grad(g, f, dg)[0]]

    assert_reproducible(run, every_device)


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4, 5)])
def test_wrong_number_of_dimensions(shape: tuple[int, ...], device: torch.device) -> None:
    with pytest.raises(RuntimeError, match=r"gram_matrix: input must have shape \(C, L\)"):
        FF.gram_matrix(torch.randn(shape, device=device))


def test_float16_mean_does_not_overflow_on_either_path(every_device: torch.device) -> None:
    f = torch.full((4, 4096), 10.0, dtype=torch.float16, device=every_device)
    assert FF.gram_matrix(f, normalize=True).unique().item() == 25
    with fastnn.disabled():
        assert FF.gram_matrix(f, normalize=True).unique().item() == 25


def test_disabled_gives_torch(device: torch.device) -> None:
    f = torch.randn(4, 9, device=device)
    with fastnn.disabled():
        seen = fastnn.explain(FF.gram_matrix, f, True)
    torch.testing.assert_close(seen.result, f @ f.t() / 36)
    assert seen.decisions == (("gram_matrix", "fastnn is disabled"),)
