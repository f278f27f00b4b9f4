"""float64 references, error bounds and input layouts that the op tests share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def assert_close_sum(actual: Tensor, expected: Tensor, magnitude: Tensor, terms: int) -> None:
    """Check a sum of products against its float64 value.

    A sum of n products in precision u has an error of at most about n u sum|a b|; since rounding errors are
    independent, sqrt(n) u sum|a b| is typical, and 4 times that covers the worst of many values.
    Storing the result in its own dtype adds half a unit in the last place (for subnormal float16 results half
    the smallest subnormal).

    Args:
        actual: the result of the op, on any device.
        expected: the same in float64, on the CPU.
        magnitude: the sum of |a b| for each value, in float64.
        terms: n.
    """
    compute_eps = torch.finfo(torch.float64 if actual.dtype == torch.float64 else torch.float32).eps
    store = torch.finfo(actual.dtype)
    bound = 4 * compute_eps * max(terms, 1) ** 0.5 * magnitude
    bound = bound + store.eps * expected.abs() + store.smallest_normal * store.eps
    error = (actual.cpu().double() - expected).abs()
    worst = (error - bound).max().item() if error.numel() else 0.0
    assert worst <= 0, f"error exceeds its bound by {worst:.3e}"


LAYOUTS = ("contiguous", "transposed", "misaligned", "rows apart", "rows and packs apart", "both apart")


def laid_out(t: Tensor, layout: str, device: torch.device | str = "cpu") -> Tensor:
    """The matrix `t` on the device, laid out in memory as requested, with NaN around it to reveal stray
    reads."""
    rows, columns = t.shape
    if layout == "contiguous":
        return t.to(device, copy=True)
    if layout == "transposed":
        return t.t().contiguous().to(device).t()
    room, at = {
        "misaligned": ((rows, columns), None),
        "rows apart": ((rows, columns + 3), (slice(None), slice(3, None))),
        "rows and packs apart": ((rows, columns + 16), (slice(None), slice(8, columns + 8))),
        "ends inside a pack": ((rows, columns + 8 - columns % 8), (slice(None), slice(columns))),
        "both apart": ((2 * rows + 1, 3 * columns + 1), (slice(1, None, 2), slice(1, None, 3))),
    }[layout]
    flat = torch.full((room[0] * room[1] + 1,), float("nan"), dtype=t.dtype, device=device)
    whole = flat[1:].view(room) if at is None else flat[:-1].view(room)[at]
    return whole.copy_(t)


def layouts(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """The same kind of matrix with every memory layout that a kernel may meet."""
    dense = torch.randn(rows, columns, dtype=torch.float64).to(dtype)
    variants = {layout: laid_out(dense, layout, device) for layout in LAYOUTS}
    if rows and columns:
        variants["expanded"] = dense.to(device)[:1].expand(rows, columns)
        variants["expanded-column"] = dense.to(device)[:, :1].expand(rows, columns)
    return variants


@contextlib.contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Allow CUDA to multiply float32 in tf32, or forbid it, inside the block."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
