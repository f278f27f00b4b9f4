"""Ops that move values without computing: joining, padding, flipping."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import View
from fastnn.capture.lowering.layout import (
    MAX_DIMS,
    MOVABLE,
    copy,
    diagonal,
    dimension,
    fill,
    narrow,
    need,
    need_same_dtype,
    select,
)
from fastnn.capture.lowering.table import Lowering, lowers


@lowers("cat.default")
def _cat(low: Lowering, out: View, parts: Sequence[View], dim: int = 0) -> None:
    need([out, *parts], MOVABLE)
    need_same_dtype(out, *parts)
    dim, start = dimension(dim, len(out.shape)), 0
    for part in parts:
        if len(part.shape) != len(out.shape):
            continue  # an empty vector, which torch ignores next to tensors of any shape
        copy(low, narrow(out, dim, start, part.shape[dim]), part)
        start += part.shape[dim]


@lowers("stack.default")
def _stack(low: Lowering, out: View, parts: Sequence[View], dim: int = 0) -> None:
    need([out, *parts], MOVABLE)
    need_same_dtype(out, *parts)
    dim = dimension(dim, len(out.shape))
    for nth, part in enumerate(parts):
        copy(low, select(out, dim, nth), part)


@lowers("repeat.default")
def _repeat(low: Lowering, out: View, x: View, repeats: Sequence[int]) -> None:
    need([out, x], MOVABLE)
    added = len(repeats) - len(x.shape)
    sizes, steps = (1,) * added + x.shape, (0,) * added + x.strides
    shape: list[int] = []
    to: list[int] = []
    source: list[int] = []
    for times, size, step, stride in zip(repeats, sizes, steps, out.strides, strict=True):
        for n, by, of in ((times, stride * size, 0), (size, stride, step)):
            if n != 1:
                shape.append(n)
                to.append(by)
                source.append(of)
    if len(shape) > MAX_DIMS:
        raise Unsupported(f"{len(shape)} dimensions")
    copy(low, out.with_shape(tuple(shape), tuple(to)), x.with_shape(tuple(shape), tuple(source)))


@lowers("flip.default")
def _flip(low: Lowering, out: View, x: View, dims: Sequence[int]) -> None:
    need([out, x], MOVABLE)
    mask = 0
    for dim in dims:
        mask |= 1 << dimension(dim, len(x.shape))
    if out.numel:
        low.emit("flip", [out], [x], code=[mask])


@lowers("roll.default")
def _roll(low: Lowering, out: View, x: View, shifts: Sequence[int], dims: Sequence[int] = ()) -> None:
    need([out, x], MOVABLE)
    if not dims:
        if not (out.is_contiguous and x.is_contiguous):
            raise Unsupported("rolled as one vector, but not contiguous")
        out, x = (view.with_shape((view.numel,), (1,)) for view in (out, x))
        dims = (0,)
    if out.numel == 0:
        return
    # Along each dimension, two pieces that are swapped: (from, to, length).
    pieces: list[list[tuple[int, int, int]]] = [[(0, 0, n)] for n in out.shape]
    for shift, dim in zip(shifts, dims, strict=True):
        dim = dimension(dim, len(out.shape))
        if len(pieces[dim]) > 1:
            raise Unsupported("one dimension is rolled twice")
        n = out.shape[dim]
        by = shift % n
        pieces[dim] = [(0, by, n - by), (n - by, 0, by)] if by else pieces[dim]
    for chosen in itertools.product(*pieces):
        to, source = out, x
        for dim, (start, end, length) in enumerate(chosen):
            to, source = narrow(to, dim, end, length), narrow(source, dim, start, length)
        copy(low, to, source)


@lowers("constant_pad_nd.default")
def _constant_pad_nd(low: Lowering, out: View, x: View, pad: Sequence[int], value: float = 0) -> None:
    need([out, x], MOVABLE)
    _need_exact(value, out)
    inside, source = out, x
    rank = len(x.shape)
    for nth in range(len(pad) // 2):
        dim, before, after = rank - 1 - nth, pad[2 * nth], pad[2 * nth + 1]
        # Negative padding crops.
        length = max(x.shape[dim] + min(before, 0) + min(after, 0), 0)
        source = narrow(source, dim, max(-before, 0), length)
        inside = narrow(inside, dim, max(before, 0), length)
    if source.shape != out.shape:
        fill(low, out, value)
    copy(low, inside, source)


def _need_exact(value: float, out: View) -> None:
    if out.dtype == torch.int64 and abs(value) > 2**53:
        raise Unsupported("a large integer")


@lowers("tril.default", "tril_.default")
def _tril(low: Lowering, out: View, x: View, diagonal: int = 0) -> None:
    _triangle(low, out, x, diagonal, upper=False)


@lowers("triu.default", "triu_.default")
def _triu(low: Lowering, out: View, x: View, diagonal: int = 0) -> None:
    _triangle(low, out, x, diagonal, upper=True)


def _triangle(low: Lowering, out: View, x: View, diagonal: int, *, upper: bool) -> None:
    need([out, x], MOVABLE)
    if out.numel:
        rows, columns = out.shape[-2:]
        low.emit("triangle", [out], [x], code=[max(-rows - 1, min(diagonal, columns + 1)), upper])


@lowers("arange.default")
def _arange(low: Lowering, out: View, end: float, **options: object) -> None:
    _emit_arange(low, out, 0, 1)


@lowers("arange.start")
def _arange_start(low: Lowering, out: View, start: float, end: float, **options: object) -> None:
    _emit_arange(low, out, start, 1)


@lowers("arange.start_step")
def _arange_start_step(
    low: Lowering, out: View, start: float, end: float, step: float = 1, **options: object
) -> None:
    _emit_arange(low, out, start, step)


def _emit_arange(low: Lowering, out: View, start: float, step: float) -> None:
    need([out], MOVABLE - {torch.bool})
    _need_exact(start, out)
    _need_exact(step * out.numel, out)
    if out.numel:
        low.emit("arange", [out], [], [start, step])


# ---- gradients of views: zeros with something in a part of them; and a copy with a part replaced ----


def _need_move(*views: View) -> None:
    need(views, MOVABLE)
    need_same_dtype(*views)


def _slice(view: View, dim: int, start: int | None, end: int | None, step: int) -> View:
    picked = range(*slice(start, end, step).indices(view.shape[dim]))
    return narrow(view, dim, picked.start if picked else 0, len(picked), step)


@lowers("select_backward.default")
def _select_backward(
    low: Lowering, out: View, grad: View, sizes: Sequence[int], dim: int, index: int
) -> None:
    _need_move(out, grad)
    fill(low, out, 0)
    copy(low, select(out, dimension(dim, len(out.shape)), index), grad)


@lowers("slice_backward.default")
def _slice_backward(
    low: Lowering, out: View, grad: View, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> None:
    _need_move(out, grad)
    part = _slice(out, dimension(dim, len(out.shape)), start, end, step)
    if part.shape != out.shape:
        fill(low, out, 0)
    copy(low, part, grad)


@lowers("diagonal_backward.default")
def _diagonal_backward(
    low: Lowering, out: View, grad: View, sizes: Sequence[int], offset: int, dim1: int, dim2: int
) -> None:
    _need_move(out, grad)
    fill(low, out, 0)
    copy(low, diagonal(out, offset, dim1, dim2), grad)


@lowers("diag_embed.default")
def _diag_embed(low: Lowering, out: View, x: View, offset: int = 0, dim1: int = -2, dim2: int = -1) -> None:
    _need_move(out, x)
    fill(low, out, 0)
    copy(low, diagonal(out, offset, dim1, dim2), x)


@lowers("select_scatter.default")
def _select_scatter(low: Lowering, out: View, x: View, source: View, dim: int, index: int) -> None:
    _need_move(out, x, source)
    copy(low, out, x)
    copy(low, select(out, dimension(dim, len(out.shape)), index), source)


@lowers("slice_scatter.default")
def _slice_scatter(
    low: Lowering,
    out: View,
    x: View,
    source: View,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> None:
    _need_move(out, x, source)
    copy(low, out, x)
    copy(low, _slice(out, dimension(dim, len(out.shape)), start, end, step), source)


@lowers("diagonal_scatter.default")
def _diagonal_scatter(
    low: Lowering, out: View, x: View, source: View, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> None:
    _need_move(out, x, source)
    copy(low, out, x)
    copy(low, diagonal(out, offset, dim1, dim2), source)
