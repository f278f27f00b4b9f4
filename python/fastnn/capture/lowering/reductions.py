"""Sums, extremes and what is made of them, over any dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from fastnn.capture.ir import Expr, Unsupported, View
from fastnn.capture.lowering.table import Lowering, lowers
from fastnn.capture.lowering.types import check
from fastnn.capture.overlap import extent, overlap

_Dims: TypeAlias = "list[int] | int | None"
_Dim: TypeAlias = "tuple[int, ...]"  # size, strides in elements


def _reduced_dims(x: View, dims: _Dims) -> list[int]:
    """In ascending order; none at all means all of them."""
    rank = len(x.shape)
    if dims is None or dims == []:
        return list(range(rank))
    return sorted({d % max(rank, 1) for d in ([dims] if isinstance(dims, int) else dims)} & set(range(rank)))


def _kept_shape(x: View, dims: Sequence[int]) -> tuple[int, ...]:
    """With dimensions of size 1 where something is reduced."""
    return tuple(1 if d in dims else n for d, n in enumerate(x.shape))


def _count(x: View, dims: Sequence[int]) -> int:
    return math.prod(x.shape[d] for d in dims)


def _with_kept_dims(out: View, x: View, dims: Sequence[int]) -> View:
    """A result with or without its reduced dimensions, with them."""
    if len(out.shape) == len(x.shape):
        return out
    strides = iter(out.strides)
    return out.with_shape(
        _kept_shape(x, dims), tuple(0 if d in dims else next(strides) for d in range(len(x.shape)))
    )


def _collapse(dims: list[_Dim]) -> list[_Dim]:
    """(size, strides...) of dimensions, fewer where they lie as one."""
    collapsed: list[_Dim] = []
    for n, *strides in dims:
        if collapsed and all(
            before == own * n for before, own in zip(collapsed[-1][1:], strides, strict=True)
        ):
            n *= collapsed.pop()[0]
        collapsed.append((n, *strides))
    return collapsed


def _reduce(
    low: Lowering,
    name: str,
    out: View,
    x: View,
    dims: Sequence[int],
    numbers: Sequence[float] = (),
    code: Sequence[int] = (),
) -> None:
    """Append a reduction of `x`; `out` has the reduced dimensions, of size 1."""
    if name == "sum" and out.numel == 1 and out.dtype.is_floating_point:
        low.emit(name, [out], [x], numbers)  # may join an elementwise instruction, in the shape of x
        return
    kept: list[_Dim] = [
        (n, x.strides[d], out.strides[d]) for d, n in enumerate(x.shape) if d not in dims and n != 1
    ]
    reduced: list[_Dim] = [(x.shape[d], x.strides[d]) for d in dims if x.shape[d] != 1]
    kept.sort(key=lambda dim: -dim[1])
    if name != "arg_extreme":  # the rest may be gone through in any order
        reduced.sort(key=lambda dim: -dim[1])
    kept = _collapse(kept)
    reduced = _collapse(reduced) or [(1, 1)]
    shape = tuple(dim[0] for dim in kept)
    low.emit(
        name,
        [out.with_shape(shape, tuple(dim[2] for dim in kept))],
        [x.with_shape(shape + tuple(dim[0] for dim in reduced), tuple(dim[1] for dim in (*kept, *reduced)))],
        numbers,
        [len(kept), *code],
    )


def _converted(low: Lowering, x: View, dtype: torch.dtype) -> View:
    return x if x.dtype is dtype else _computed(low, x, dtype, x)


def _computed(
    low: Lowering, expr: Expr, dtype: torch.dtype, like: View, to: torch.dtype | None = None
) -> View:
    """An expression of the shape of `like`, computed in `dtype`, in memory of the program's."""
    view = low.temporary(like.shape, to or dtype)
    low.elementwise(view, expr, dtype)
    return view


def _check(out: View, x: View, *, floats: bool = False) -> None:
    if len(x.shape) > 8:
        raise Unsupported(f"{len(x.shape)} dimensions")
    check(out)
    check(out.with_shape((), ()), x.with_shape((), ()))
    if overlap(extent(out), extent(x)):
        raise Unsupported("a reduction to where its operand lies")
    if floats and not (out.dtype.is_floating_point and x.dtype.is_floating_point):
        raise Unsupported("a reduction of integers")


def _sum(low: Lowering, out: View, x: View, dims: _Dims, mean: bool) -> None:
    _check(out, x, floats=mean)
    if out.dtype is torch.bool:
        raise Unsupported("a sum of bools")
    over = _reduced_dims(x, dims)
    divisor = float(_count(x, over)) if mean else 1.0
    _reduce(low, "sum", _with_kept_dims(out, x, over), _converted(low, x, out.dtype), over, [divisor])


@lowers("sum.default", "sum.out", "sum.dim_IntList", "sum.IntList_out")
def _sum_of(low: Lowering, out: View, /, x: View, dim: _Dims = None, *_: Any, **__: Any) -> None:
    _sum(low, out, x, dim, mean=False)


@lowers("mean.default", "mean.dtype_out", "mean.dim", "mean.out")
def _mean_of(low: Lowering, out: View, /, x: View, dim: _Dims = None, *_: Any, **__: Any) -> None:
    _sum(low, out, x, dim, mean=True)


def _extreme(low: Lowering, name: str, out: View, x: View, dims: Sequence[int]) -> None:
    if x.numel == 0 and out.numel:
        raise Unsupported("an extreme of nothing")
    if x.dtype is not out.dtype:
        raise Unsupported("an extreme of another type")
    _reduce(low, name, _with_kept_dims(out, x, dims), x, dims)


def _extremes(name: str, short: str) -> None:
    @lowers(f"{name}.default", f"{name}.out")
    def over_dims(low: Lowering, out: View, /, x: View, dim: _Dims = None, *_: Any, **__: Any) -> None:
        _check(out, x)
        _extreme(low, name, out, x, _reduced_dims(x, dim))

    @lowers(f"{short}.default", f"{short}.unary_out")
    def over_all(low: Lowering, out: View, /, x: View, **_: Any) -> None:
        _check(out, x)
        _extreme(low, name, out, x, _reduced_dims(x, None))

    @lowers(f"{short}.dim")
    def with_place(low: Lowering, outs: list[View], /, x: View, dim: int, *_: Any, **__: Any) -> None:
        values, places = outs
        _check(values, x)
        over = _reduced_dims(x, dim)
        _extreme(low, name, values, x, over)
        _find(low, places, x, over, short == "max")

    @lowers(f"arg{short}.default", f"arg{short}.out")
    def place(low: Lowering, out: View, /, x: View, dim: int | None = None, *_: Any, **__: Any) -> None:
        _check(out, x)
        if x.numel == 0 and out.numel:
            raise Unsupported("an extreme of nothing")
        _find(low, out, x, _reduced_dims(x, dim), short == "max")


def _find(low: Lowering, out: View, x: View, dims: Sequence[int], largest: bool) -> None:
    _reduce(low, "arg_extreme", _with_kept_dims(out, x, dims), x, dims, code=[largest])


_extremes("amax", "max")
_extremes("amin", "min")


def _truth(op: str, name: str) -> None:
    @lowers(f"{op}.default", f"{op}.all_out", f"{op}.dim", f"{op}.out", f"{op}.dims", f"{op}.dims_out")
    def rule(low: Lowering, out: View, /, x: View, dim: _Dims = None, *_: Any, **__: Any) -> None:
        _check(out, x)
        if out.dtype is not torch.bool:
            raise Unsupported(f"a truth of {out.dtype}")
        over = _reduced_dims(x, dim)
        _reduce(low, name, _with_kept_dims(out, x, over), _converted(low, x, torch.bool), over)


_truth("any", "amax")
_truth("all", "amin")


@lowers("count_nonzero.dim_IntList", "count_nonzero.default")
def _count_nonzero(low: Lowering, out: View, /, x: View, dim: _Dims = None) -> None:
    _check(out, x)
    over = _reduced_dims(x, dim)
    ones = _computed(low, ("ne", x, 0), x.dtype, x, torch.int64)
    _reduce(low, "sum", _with_kept_dims(out, x, over), ones, over, [1.0])


def _variance(
    low: Lowering, out: View, x: View, dims: _Dims, correction: float | None, mean: View | None
) -> None:
    over = _reduced_dims(x, dims)
    count = _count(x, over)
    if mean is None:
        mean = low.temporary(_kept_shape(x, over), x.dtype)
    else:
        mean = _with_kept_dims(mean, x, over)
    _reduce(low, "sum", mean, x, over, [count])
    squares = _computed(low, ("square", ("sub", x, mean)), x.dtype, x)
    divisor = max(count - (1 if correction is None else correction), 0)
    _reduce(low, "sum", _with_kept_dims(out, x, over), squares, over, [divisor])


def _check_variance(out: View, x: View) -> None:
    _check(out, x, floats=True)
    if out.dtype is not x.dtype:
        raise Unsupported("a variance of another type")


@lowers("var.correction", "var.correction_out")
def _var(
    low: Lowering, out: View, /, x: View, dim: _Dims = None, *, correction: float | None = None, **_: Any
) -> None:
    _check_variance(out, x)
    _variance(low, out, x, dim, correction, None)


@lowers("std.correction", "std.correction_out")
def _std(
    low: Lowering, out: View, /, x: View, dim: _Dims = None, *, correction: float | None = None, **_: Any
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
    dim: _Dims = None,
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
    dim: _Dims = None,
    *,
    correction: float | None = None,
    **_: Any,
) -> None:
    _check_variance(outs[0], x)
    _variance(low, outs[0], x, dim, correction, outs[1])
    low.elementwise(outs[0], ("sqrt", outs[0]))


def _norm(low: Lowering, out: View, x: View, order: float, dims: _Dims) -> None:
    over = _reduced_dims(x, dims)
    kept = _with_kept_dims(out, x, over)
    size: Expr = ("abs", x)
    if math.isinf(order):
        name = "amax" if order > 0 else "amin"
        _reduce(low, name, kept, _computed(low, size, out.dtype, x), over)
        return
    terms: dict[float, Expr] = {0: ("ne", x, 0), 1: size, 2: ("square", x)}
    term = terms.get(order, ("pow", size, order))
    _reduce(low, "sum", kept, _computed(low, term, out.dtype, x), over, [1.0])
    if order == 2:
        low.elementwise(out, ("sqrt", out))
    elif order not in (0, 1):
        low.elementwise(out, ("pow", out, 1 / order))


def _check_norm(out: View, x: View, order: float) -> None:
    _check(out, x, floats=True)
    if x.numel == 0 and math.isinf(order):
        raise Unsupported("an extreme of nothing")


@lowers("linalg_vector_norm.default", "linalg_vector_norm.out")
def _vector_norm(
    low: Lowering, out: View, /, x: View, ord: float = 2, dim: _Dims = None, *_: Any, **__: Any
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
def _logsumexp(low: Lowering, out: View, /, x: View, dim: _Dims, *_: Any, **__: Any) -> None:
    _check(out, x, floats=True)
    if out.dtype is not x.dtype or x.numel == 0:
        raise Unsupported("logsumexp of another type, or of nothing")
    over = _reduced_dims(x, dim)
    largest = low.temporary(_kept_shape(x, over), x.dtype)
    _reduce(low, "amax", largest, x, over)
    finite: Expr = ("where", ("eq", ("abs", largest), math.inf), 0, largest)
    shift = _computed(low, finite, x.dtype, largest)
    terms = _computed(low, ("exp", ("sub", x, shift)), x.dtype, x)
    kept = _with_kept_dims(out, x, over)
    _reduce(low, "sum", kept, terms, over, [1.0])
    low.elementwise(kept, ("add", ("log", kept), shift))
