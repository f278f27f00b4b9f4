"""linear against float64, for every kernel, wherever its tensors are."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from reference import assert_close_sum
from torch import Tensor

import fastnn
import fastnn.functional as FF
from fastnn import _dispatch
from fastnn.ops.linear import ACTIVATIONS, torch_activation, torch_activation_gradient

# M, N, K. On the CPU around one register tile (8 x 48, 6 x 16, 6 x 8), one vector, one pass along K (1024),
# more rows (1024) and columns (1536) than are processed at a time, columns of A a multiple of 2 KB apart
# (40 x 300 x 1024), 16-bit rows that fill the packing buffer of 8 MB three times (600 x 3 x 8192). On CUDA
# around tiles of 32, 64 and 128 and steps of 16 and 32, aligned for 128-bit copies and not, K long enough to
# be split. And degenerate ones.
SHAPES = [
    (1, 1, 1),
    (2, 3, 5),
    (7, 15, 16),
    (8, 48, 17),
    (9, 49, 33),
    (13, 17, 31),
    (64, 10, 128),
    (33, 100, 1023),
    (17, 47, 1025),
    (70, 145, 2100),
    (1040, 1600, 40),
    (19, 512, 90),
    (40, 300, 1024),
    (600, 3, 8192),
    (1, 64, 300),
    (200, 1, 64),
    (32, 32, 32),
    (33, 65, 15),
    (63, 17, 16),
    (64, 10, 300),
    (127, 7, 40),
    (129, 130, 300),
    (200, 200, 17),
    (256, 16, 64),
    (10, 3, 1000),
    (0, 4, 3),
    (4, 0, 3),
    (4, 3, 0),
    (0, 0, 0),
]

SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).to(device)


def problem(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device | str = "cpu", bias: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """x, weight, bias and dY of a layer of M, N, K."""
    m, n, k = shape
    b = make((n,), dtype, device) if bias else None
    return make((m, k), dtype, device), make((n, k), dtype, device), b, make((m, n), dtype, device)


def wide(t: Tensor) -> Tensor:
    return t.detach().cpu().double()


def check(
    x: Tensor, w: Tensor, b: Tensor | None, dy: Tensor, activation: str | None = None, rounding: float = 0.0
) -> None:
    """Forward and gradients, natively, against float64; `rounding` is the relative error of one factor."""
    (m, k), n = x.shape, w.shape[0]
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, w, b)]
    saved: list[Any] = []

    def run() -> list[Tensor]:
        y = FF.linear(*leaves, activation)  # type: ignore[arg-type]
        assert y.grad_fn is not None
        saved.append(y.grad_fn.saved_tensors[2])  # type: ignore[attr-defined]
        wanted = [t for t in leaves if t is not None]
        return [y.detach(), *torch.autograd.grad(y, wanted, dy)]

    seen = fastnn.explain(run)
    if _dispatch.cpu is not None:
        assert [(d.op, d.reason) for d in seen.decisions] == [("linear", None), ("linear_backward", None)]
    y, dx, dw, *db = seen.result
    assert y.shape == (m, n)
    assert y.dtype == x.dtype
    assert y.is_contiguous()
    x64, w64, dy64 = wide(x), wide(w), wide(dy)
    z, magnitude = x64 @ w64.t(), x64.abs() @ w64.abs().t()
    if b is not None:
        z, magnitude = z + wide(b), magnitude + wide(b).abs()
    smooth = activation not in (None, "relu")
    # The magnitudes are multiplied by the number of further eps: see assert_close_sum. Slopes are up to 1.13,
    # and an activation has a few eps of its own.
    more = 1 + 2 * rounding / torch.finfo(torch.float32).eps
    assert_close_sum(
        y, torch_activation(z, activation), more * (1.2 * magnitude + 1 if smooth else magnitude), k
    )

    g, g_magnitude = dy64, dy64.abs()
    if activation is not None:
        # At the values used by the backward; y shows how close z is to x W^T + b.
        g = torch_activation_gradient(dy64, wide(saved[0]), activation)
        g_magnitude = g.abs()
    if smooth:
        # A few eps of sums of terms about 1; in float64 those of the reference too, up to 17 (gelu_tanh).
        # 16-bit types round g before the products.
        g_magnitude = 8 * dy64.abs()
        if x.dtype in SIXTEEN_BITS:
            g_magnitude = dy64.abs() * (torch.finfo(x.dtype).eps / torch.finfo(torch.float32).eps)
    assert_close_sum(dx, g @ w64, more * (g_magnitude @ w64.abs()), n)
    assert_close_sum(dw, g.t() @ x64, more * (g_magnitude.t() @ x64.abs()), m)
    if b is not None:
        assert_close_sum(db[0], g.sum(0), g_magnitude.sum(0), m)


def check_special_values(special: float, dtype: torch.dtype, device: torch.device, few: bool = False) -> None:
    """NaN and infinities appear where torch's float64 has them."""
    for k, activations in ((31, ACTIVATIONS[:2] if few else ACTIVATIONS), (400, ACTIVATIONS[:2])):
        # Whole numbers: if float32 is split for tensor cores, infinity is multiplied by remainders of 0.
        x, w = (torch.randint(-3, 4, (rows, k)).to(dtype) for rows in (9, 50))
        x[0, 0] = x[3, 16] = x[8, 30] = special
        w[5, 7] = special
        b = torch.randn(50).to(dtype)
        z = F.linear(x.double(), w.double(), b.double())
        for activation in activations:
            got = FF.linear(x.to(device), w.to(device), b.to(device), activation).cpu()
            want = torch_activation(z, activation)
            if activation == "gelu":  # torch's own gelu(inf) is nan where it is vectorised
                want[z == float("inf")] = float("inf")
            eps = torch.finfo(dtype).eps
            # The sums are exact but for the bias; activations have a few eps.
            torch.testing.assert_close(got, want.to(dtype), equal_nan=True, rtol=8 * eps, atol=2e-6)
