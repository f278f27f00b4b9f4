"""Reductions, natively as in torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from covered import Covered, check_native
from fastnn import _dispatch

pytestmark = [
    pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module"),
    pytest.mark.filterwarnings("ignore:(var|std|std_mean|var_mean).*degrees of freedom"),
]

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float64]
SHAPES: dict[str, Callable[[], tuple[Tensor, list[list[int]]]]] = {
    "vector": lambda: (torch.randn(37), [[0]]),
    "long vector": lambda: (torch.randn(5000), [[0]]),
    "one": lambda: (torch.randn(1, 1), [[0], [1], [0, 1]]),
    "short rows": lambda: (torch.randn(61, 6), [[0], [1], [0, 1]]),
    "rows": lambda: (torch.randn(21, 133), [[0], [1], [0, 1]]),
    "narrow": lambda: (torch.randn(1000, 3), [[0], [1]]),
    "wide": lambda: (torch.randn(5, 3000), [[0], [1]]),
    "square": lambda: (torch.randn(130, 130), [[0], [1]]),
    "transposed": lambda: (torch.randn(70, 33).t(), [[0], [1], [0, 1]]),
    "sliced": lambda: (torch.randn(70, 40)[::2, 3:20], [[0], [1], [0, 1]]),
    "expanded": lambda: (torch.randn(70, 1).expand(70, 9), [[0], [1], [0, 1]]),
    "images": lambda: (torch.randn(3, 5, 4, 6), [[1], [0, 2, 3], [2, 3], [0], [1, 3], [0, 1, 2, 3]]),
    "permuted images": lambda: (torch.randn(3, 5, 4, 6).permute(0, 2, 3, 1), [[1, 2], [3], [0, 1, 2]]),
}


def close(dtype: torch.dtype, count: int) -> dict[str, float]:
    """torch's own float32 sums are off by some eps times the root of the count."""
    eps = 6e-8 if dtype is torch.float32 else 1.1e-16
    return {"rtol": 8 * eps * max(count, 16) ** 0.5, "atol": 8 * eps * max(count, 16) ** 0.5}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keepdim", [False, True], ids=["", "keepdim"])
def test_over_dimensions(shape: str, dtype: torch.dtype, keepdim: bool, isa: str) -> None:
    values, choices = SHAPES[shape]()
    x = values.to(dtype)
    for dims in choices:
        wide = close(dtype, x.numel())
        check_native(lambda d=dims: x.sum(d, keepdim=keepdim), "sum.dim_IntList", **wide)
        check_native(lambda d=dims: x.mean(d, keepdim=keepdim), "mean.dim", **wide)
        check_native(lambda d=dims: x.amax(d, keepdim=keepdim), "amax.default")
        check_native(lambda d=dims: x.amin(d, keepdim=keepdim), "amin.default")
        check_native(lambda d=dims: x.var(d, keepdim=keepdim), "var.correction", **wide)
        check_native(lambda d=dims: x.std(d, correction=0, keepdim=keepdim), "std.correction", **wide)
        check_native(lambda d=dims: torch.logsumexp(x, d, keepdim=keepdim), "logsumexp.default", **wide)
        for order in (2, 1, INF, -INF, 0, 3):
            check_native(
                lambda d=dims, o=order: torch.linalg.vector_norm(x, o, d, keepdim=keepdim),
                "linalg_vector_norm.default",
                **wide,
            )
        check_native(lambda d=dims: (x > 1).sum(d, keepdim=keepdim), "sum.dim_IntList")
        check_native(lambda d=dims: (x * 9).long().sum(d, keepdim=keepdim), "sum.dim_IntList")
        check_native(lambda d=dims: (x > 1).any(d, keepdim=keepdim), "any.dims")
        check_native(lambda d=dims: (x > -1).all(d, keepdim=keepdim), "all.dims")
        check_native(lambda d=dims: torch.count_nonzero(x > 0, d), "count_nonzero.dim_IntList")
        if len(dims) == 1:
            dim = dims[0]
            check_native(lambda d=dim: x.max(d, keepdim=keepdim), "max.dim")
            check_native(lambda d=dim: x.min(d, keepdim=keepdim), "min.dim")
            check_native(lambda d=dim: x.argmax(d, keepdim=keepdim), "argmax.default")
            check_native(lambda d=dim: (x * 2).long().argmin(d, keepdim=keepdim), "argmin.default")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_full_reductions_match_torch(shape: str, dtype: torch.dtype, isa: str) -> None:
    x = SHAPES[shape]()[0].to(dtype)
    wide = close(dtype, x.numel())
    check_native(lambda: x.sum(), "sum.default", **wide)
    check_native(lambda: x.mean(), "mean.default", **wide)
    check_native(lambda: x.sum(dtype=torch.float64), "sum.default", **close(torch.float64, x.numel()))
    check_native(lambda: [x.max(), x.min()], "max.default", "min.default")
    check_native(lambda: [x.argmax(), x.argmin()], "argmax.default", "argmin.default")
    check_native(lambda: [(x > 0).any(), (x > 0).all()], "any.default", "all.default")
    check_native(lambda: torch._foreach_norm([x, x + 1], 2), "_foreach_norm.Scalar", **wide)
    check_native(lambda: x.std(), "std.correction", **wide)
    check_native(lambda: torch.var_mean(x), "var_mean.correction", **wide)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64], ids=str)
@pytest.mark.parametrize("count", [3, 17, 300])
def test_nan_ties_and_infinities(count: int, dtype: torch.dtype, isa: str) -> None:
    for special in ([NAN], [INF, -INF], [NAN, INF], [3.0, 3.0], [-INF]):
        x = torch.randint(-3, 4, (33, count)).to(dtype)
        if dtype.is_floating_point:
            for value in special:
                for row in range(0, 33, 2):
                    x[row, torch.randint(count, (2,))] = value
        for dim in (0, 1):
            for view in (x, x.t().contiguous().t()):
                check_native(lambda v=view, d=dim: [v.amax(d), v.amin(d)], "amax.default", "amin.default")
                check_native(lambda v=view, d=dim: [v.max(d), v.min(d)], "max.dim", "min.dim")
                check_native(lambda v=view, d=dim: [v.argmax(d), v.argmin(d)], "argmax.default")
                check_native(lambda v=view, d=dim: v.sum(d), "sum.dim_IntList")
        check_native(
            lambda x=x: [x.max(), x.argmax(), x.sum()], "max.default", "argmax.default", "sum.default"
        )
        if dtype.is_floating_point:
            check_native(lambda x=x: torch.logsumexp(x, 1), "logsumexp.default")


def test_reducing_nothing_gives_what_torch_gives(isa: str) -> None:
    x = torch.randn(0, 4)
    check_native(lambda: [x.sum(), x.sum(0), x.sum(1)], "sum.default", "sum.dim_IntList")
    check_native(lambda: [x.mean(), x.mean(0)], "mean.default", "mean.dim")
    check_native(lambda: [(x > 0).any(0), (x > 0).all(0), (x > 0).any(1)], "any.dim", "all.dim")
    check_native(lambda: torch.randn(1).var(), "var.correction")
    check_native(lambda: x.long().sum(0), "sum.dim_IntList")


def test_threads_change_no_value(isa: str) -> None:
    x = torch.randn(700, 300)

    def run() -> list[Tensor]:
        with Covered() as mode:
            for dim in (0, 1):
                x.sum(dim)
                x.amax(dim)
                x.argmax(dim)
            x.t()[:, :3].sum(0)
            x.sum()
            x.std()
        return [native for _, _, native in mode.results]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(2)
        two = run()
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, two, strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_errors_of_sums_are_no_larger_than_torchs(dim: int | None, isa: str) -> None:
    x = torch.randn(1024, 777) + 0.3
    with Covered() as mode:
        x.sum() if dim is None else x.sum(dim)
    ((_, expected, found),) = mode.results
    reference = x.double().sum() if dim is None else x.double().sum(dim)
    ours = float((found - reference).square().mean().sqrt())
    torchs = float((expected - reference).square().mean().sqrt())
    assert ours <= 1.5 * torchs + 2e-6 * float(reference.abs().mean())
