"""Sums, extremes and what is derived from them, over any dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import Expr, View
from fastnn.capture.lowering.table import Lowering, lowers
from fastnn.capture.lowering.types import check
from fastnn.capture.overlap import extent, overlap

Dims: TypeAlias = "list[int] | int | None"
_Dim: TypeAlias = "tuple[int, ...]"  # size, strides in elements


def reduced_dims(x: View, dims: Dims) -> list[int]:
    """In ascending order; an empty list means all of them."""
    rank = len(x.shape)
    if dims is None or dims == []:
        return list(range(rank))
    return sorted({d % max(rank, 1) for d in ([dims] if isinstance(dims, int) else dims)} & set(range(rank)))


def kept_shape(x: View, dims: Sequence[int]) -> tuple[int, ...]:
    """The shape with size 1 for each reduced dimension."""
    return tuple(1 if d in dims else n for d, n in enumerate(x.shape))


def count_of(x: View, dims: Sequence[int]) -> int:
    """How many elements are reduced to each result."""
    return math.prod(x.shape[d] for d in dims)


def with_kept_dims(out: View, x: View, dims: Sequence[int]) -> View:
    """A result with its reduced dimensions, whether or not it has them already."""
    if len(out.shape) == len(x.shape):
        return out
    strides = iter(out.strides)
    return out.with_shape(
        kept_shape(x, dims), tuple(0 if d in dims else next(strides) for d in range(len(x.shape)))
    )


def _collapse(dims: list[_Dim]) -> list[_Dim]:
    """(size, strides...) of dimensions, merged where several are equivalent to one."""
    collapsed: list[_Dim] = []
    for n, *strides in dims:
        if collapsed and all(
            before == own * n for before, own in zip(collapsed[-1][1:], strides, strict=True)
        ):
            n *= collapsed.pop()[0]
        collapsed.append((n, *strides))
    return collapsed


def reduce(
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
        low.emit(name, [out], [x], numbers)  # may be fused with an elementwise instruction of the shape of x
        return
    kept: list[_Dim] = [
        (n, x.strides[d], out.strides[d]) for d, n in enumerate(x.shape) if d not in dims and n != 1
    ]
    reduced: list[_Dim] = [(x.shape[d], x.strides[d]) for d in dims if x.shape[d] != 1]
    kept.sort(key=lambda dim: -dim[1])
    if name != "arg_extreme":  # the others may iterate in any order
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
    return x if x.dtype is dtype else computed(low, x, dtype, x)


def computed(
    low: Lowering, expr: Expr, dtype: torch.dtype, like: View, to: torch.dtype | None = None
) -> View:
    """An expression of the shape of `like`, computed in `dtype`, in the program's own memory."""
    view = low.temporary(like.shape, to or dtype)
    low.elementwise(view, expr, dtype)
    return view


def check_reduction(out: View, x: View, *, floats: bool = False) -> None:
    """Refuse what cannot be a reduction's result and operand."""
    if len(x.shape) > 8:
        raise Unsupported(f"{len(x.shape)} dimensions")
    check(out)
    check(out.with_shape((), ()), x.with_shape((), ()))
    if overlap(extent(out), extent(x)):
        raise Unsupported("a reduction written over its operand")
    if floats and not (out.dtype.is_floating_point and x.dtype.is_floating_point):
        raise Unsupported("a reduction of integers")


def _sum(low: Lowering, out: View, x: View, dims: Dims, mean: bool) -> None:
    check_reduction(out, x, floats=mean)
    if out.dtype is torch.bool:
        raise Unsupported("a sum of bools")
    over = reduced_dims(x, dims)
    divisor = float(count_of(x, over)) if mean else 1.0
    reduce(low, "sum", with_kept_dims(out, x, over), _converted(low, x, out.dtype), over, [divisor])


@lowers("sum.default", "sum.out", "sum.dim_IntList", "sum.IntList_out")
def _sum_of(low: Lowering, out: View, /, x: View, dim: Dims = None, *_: Any, **__: Any) -> None:
    _sum(low, out, x, dim, mean=False)


@lowers("mean.default", "mean.dtype_out", "mean.dim", "mean.out")
def _mean_of(low: Lowering, out: View, /, x: View, dim: Dims = None, *_: Any, **__: Any) -> None:
    _sum(low, out, x, dim, mean=True)


def _extreme(low: Lowering, name: str, out: View, x: View, dims: Sequence[int]) -> None:
    if x.numel == 0 and out.numel:
        raise Unsupported("an extreme of nothing")
    if x.dtype is not out.dtype:
        raise Unsupported("an extreme of another type")
    reduce(low, name, with_kept_dims(out, x, dims), x, dims)


def _extremes(name: str, short: str) -> None:
    @lowers(f"{name}.default", f"{name}.out")
    def over_dims(low: Lowering, out: View, /, x: View, dim: Dims = None, *_: Any, **__: Any) -> None:
        check_reduction(out, x)
        _extreme(low, name, out, x, reduced_dims(x, dim))

    @lowers(f"{short}.default", f"{short}.unary_out")
    def over_all(low: Lowering, out: View, /, x: View, **_: Any) -> None:
        check_reduction(out, x)
        _extreme(low, name, out, x, reduced_dims(x, None))

    @lowers(f"{short}.dim")
    def with_place(low: Lowering, outs: list[View], /, x: View, dim: int, *_: Any, **__: Any) -> None:
        values, places = outs
        check_reduction(values, x)
        over = reduced_dims(x, dim)
        _extreme(low, name, values, x, over)
        _find(low, places, x, over, short == "max")

    @lowers(f"arg{short}.default", f"arg{short}.out")
    def place(low: Lowering, out: View, /, x: View, dim: int | None = None, *_: Any, **__: Any) -> None:
        check_reduction(out, x)
        if x.numel == 0 and out.numel:
            raise Unsupported("an extreme of nothing")
        _find(low, out, x, reduced_dims(x, dim), short == "max")


def _find(low: Lowering, out: View, x: View, dims: Sequence[int], largest: bool) -> None:
    reduce(low, "arg_extreme", with_kept_dims(out, x, dims), x, dims, code=[largest])


_extremes("amax", "max")
_extremes("amin", "min")


def _truth(op: str, name: str) -> None:
    @lowers(f"{op}.default", f"{op}.all_out", f"{op}.dim", f"{op}.out", f"{op}.dims", f"{op}.dims_out")
    def rule(low: Lowering, out: View, /, x: View, dim: Dims = None, *_: Any, **__: Any) -> None:
        check_reduction(out, x)
        if out.dtype is not torch.bool:
            raise Unsupported(f"a truth of {out.dtype}")
        over = reduced_dims(x, dim)
        reduce(low, name, with_kept_dims(out, x, over), _converted(low, x, torch.bool), over)


_truth("any", "amax")
_truth("all", "amin")


@lowers("count_nonzero.dim_IntList", "count_nonzero.default")
def _count_nonzero(low: Lowering, out: View, /, x: View, dim: Dims = None) -> None:
    check_reduction(out, x)
    over = reduced_dims(x, dim)
    ones = computed(low, ("ne", x, 0), x.dtype, x, torch.int64)
    reduce(low, "sum", with_kept_dims(out, x, over), ones, over, [1.0])
