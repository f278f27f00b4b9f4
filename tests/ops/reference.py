"""float64 references, error bounds and input layouts that the op tests share."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def assert_close_sum(actual: Tensor, expected: Tensor, magnitude: Tensor, terms: int) -> None:
    """Check a sum of products against its float64 value.

    A sum of n products in precision u has an error of at most about n u sum|a b|; rounding errors being
    independent, sqrt(n) u sum|a b| is what is seen, and 4 times that has room for the worst of many values.
    Storing the result in its own dtype adds half a unit in the last place (for subnormal float16 results half
    the smallest subnormal).

    Args:
        actual: what the op gave.
        expected: the same in float64.
        magnitude: the sum of |a b| for each value, in float64.
        terms: n.
    """
    compute_eps = torch.finfo(torch.float64 if actual.dtype == torch.float64 else torch.float32).eps
    store = torch.finfo(actual.dtype)
    bound = 4 * compute_eps * max(terms, 1) ** 0.5 * magnitude
    bound = bound + store.eps * expected.abs() + store.smallest_normal * store.eps
    error = (actual.double() - expected).abs()
    worst = (error - bound).max().item() if error.numel() else 0.0
    assert worst <= 0, f"error exceeds its bound by {worst:.3e}"


def layouts(rows: int, columns: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same kind of matrix with every memory layout that a kernel may meet."""
    dense = torch.randn(rows, columns, dtype=torch.float64).to(dtype)
    spaced = torch.empty(2 * rows + 1, 3 * columns + 1, dtype=dtype)
    flat = torch.empty(rows * columns + 1, dtype=dtype)
    variants = {
        "contiguous": dense,
        "transposed": dense.t().contiguous().t(),
        "row-strided": torch.empty(rows, columns + 5, dtype=dtype)[:, :columns].copy_(dense),
        "both-strided": spaced[1::2, 1::3].copy_(dense),
        "misaligned": flat[1:].view(rows, columns).copy_(dense),
    }
    if rows and columns:
        variants["expanded"] = dense[:1].expand(rows, columns)
        variants["expanded-column"] = dense[:, :1].expand(rows, columns)
    return variants
