"""Variances, norms and logarithms of sums: composed of reductions and elementwise programs."""

from __future__ import annotations

import math
from typing import Any

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import Expr, View
from fastnn.capture.lowering.reductions import (
    Dims,
    check_reduction,
    computed,
    count_of,
    kept_shape,
    reduce,
    reduced_dims,
    with_kept_dims,
)
from fastnn.capture.lowering.table import Lowering, lowers


def _variance(
    low: Lowering, out: View, x: View, dims: Dims, correction: float | None, mean: View | None
) -> None:
    over = reduced_dims(x, dims)
    count = count_of(x, over)
    if mean is None:
        mean = low.temporary(kept_shape(x, over), x.dtype)
    else:
        mean = with_kept_dims(mean, x, over)
    reduce(low, "sum", mean, x, over, [count])
    squares = computed(low, ("square", ("sub", x, mean)), x.dtype, x)
    divisor = max(count - (1 if correction is None else correction), 0)
    reduce(low, "sum", with_kept_dims(out, x, over), squares, over, [divisor])


def _check_variance(out: View, x: View) -> None:
    check_reduction(out, x, floats=True)
    if out.dtype is not x.dtype:
        raise Unsupported("a variance of another type")


@lowers("var.correction", "var.correction_out")
def _var(
    low: Lowering, out: View, /, x: View, dim: Dims = None, *, correction: float | None = None, **_: Any
) -> None:
    _check_variance(out, x)
    _variance(low, out, x, dim, correction, None)


@lowers("std.correction", "std.correction_out")
def _std(
    low: Lowering, out: View, /, x: View, dim: Dims = None, *, correction: float | None = None, **_: Any
) -> None:
    _check_variance(out, x)
    _variance(low, out, x, dim, correction, None)
    low.elementwise(out, ("sqrt", out))


@lowers("var_mean.correction")
def _var_mean(
    low: Lowering,
    outs: list[View],
    /,
    x: View,
    dim: Dims = None,
    *,
    correction: float | None = None,
    **_: Any,
) -> None:
    _check_variance(outs[0], x)
    _variance(low, outs[0], x, dim, correction, outs[1])


@lowers("std_mean.correction")
def _std_mean(
    low: Lowering,
    outs: list[View],
    /,
    x: View,
    dim: Dims = None,
    *,
    correction: float | None = None,
    **_: Any,
) -> None:
    _check_variance(outs[0], x)
    _variance(low, outs[0], x, dim, correction, outs[1])
    low.elementwise(outs[0], ("sqrt", outs[0]))


def _norm(low: Lowering, out: View, x: View, order: float, dims: Dims) -> None:
    over = reduced_dims(x, dims)
    kept = with_kept_dims(out, x, over)
    size: Expr = ("abs", x)
    if math.isinf(order):
        name = "amax" if order > 0 else "amin"
        reduce(low, name, kept, computed(low, size, out.dtype, x), over)
        return
    terms: dict[float, Expr] = {0: ("ne", x, 0), 1: size, 2: ("square", x)}
    term = terms.get(order, ("pow", size, order))
    reduce(low, "sum", kept, computed(low, term, out.dtype, x), over, [1.0])
    if order == 2:
        low.elementwise(out, ("sqrt", out))
    elif order not in (0, 1):
        low.elementwise(out, ("pow", out, 1 / order))


def _check_norm(out: View, x: View, order: float) -> None:
    check_reduction(out, x, floats=True)
    if x.numel == 0 and math.isinf(order):
        raise Unsupported("an extreme of nothing")


@lowers("linalg_vector_norm.default", "linalg_vector_norm.out")
def _vector_norm(
    low: Lowering, out: View, /, x: View, ord: float = 2, dim: Dims = None, *_: Any, **__: Any
) -> None:
    _check_norm(out, x, ord)
    _norm(low, out, x, ord, dim)


@lowers("_foreach_norm.Scalar")
def _foreach_norm(low: Lowering, outs: list[View], /, xs: list[View], ord: float = 2, *_: Any) -> None:
    for out, x in zip(outs, xs, strict=True):
        _check_norm(out, x, ord)
    for out, x in zip(outs, xs, strict=True):
        _norm(low, out, x, ord, None)


@lowers("logsumexp.default", "logsumexp.out")
def _logsumexp(low: Lowering, out: View, /, x: View, dim: Dims, *_: Any, **__: Any) -> None:
    check_reduction(out, x, floats=True)
    if out.dtype is not x.dtype or x.numel == 0:
        raise Unsupported("logsumexp of another type, or of nothing")
    over = reduced_dims(x, dim)
    largest = low.temporary(kept_shape(x, over), x.dtype)
    reduce(low, "amax", largest, x, over)
    finite: Expr = ("where", ("eq", ("abs", largest), math.inf), 0, largest)
    shift = computed(low, finite, x.dtype, largest)
    terms = computed(low, ("exp", ("sub", x, shift)), x.dtype, x)
    kept = with_kept_dims(out, x, over)
    reduce(low, "sum", kept, terms, over, [1.0])
    low.elementwise(kept, ("add", ("log", kept), shift))
