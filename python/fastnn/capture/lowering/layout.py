"""Views of views, and layout helpers shared by rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import View
from fastnn.capture.lowering.table import Lowering

# TensorView::kMaxDims of the kernels.
MAX_DIMS = 8

MOVABLE = frozenset({torch.float32, torch.float64, torch.int64, torch.bool})
FLOATING = frozenset({torch.float32, torch.float64})


def need(views: Sequence[View | None], dtypes: frozenset[torch.dtype]) -> None:
    """Refuse views of other dtypes, or of more dimensions than kernels take."""
    for view in views:
        if view is not None and view.dtype not in dtypes:
            raise Unsupported(f"dtype {view.dtype}")
        if view is not None and len(view.shape) > MAX_DIMS:
            raise Unsupported(f"{len(view.shape)} dimensions")


def need_same_dtype(*views: View) -> None:
    """Refuse views of different dtypes."""
    if any(view.dtype != views[0].dtype for view in views):
        raise Unsupported("operands of different dtypes")


def overlaps_itself(view: View) -> bool:
    """Whether two of its elements may share memory, by torch's heuristic."""
    return any(n > 1 and stride == 0 for n, stride in zip(view.shape, view.strides, strict=True))


def is_same(a: View, b: View) -> bool:
    """Whether both name the same elements in the same order."""
    return a.storage is b.storage and a[1:] == b[1:]


def copy(low: Lowering, out: View, x: View) -> None:
    """``out = x``, of one dtype; `x` broadcasts."""
    if out.numel and not is_same(out, x):
        low.emit("copy", [out], [x.expand(out.shape)])


def fill(low: Lowering, out: View, value: float) -> None:
    """``out = value``."""
    if out.numel:
        low.emit("fill", [out], [], [value])


def contiguous(low: Lowering, x: View) -> View:
    """`x`, or a contiguous copy of it."""
    if x.is_contiguous:
        return x
    packed = low.temporary(x.shape, x.dtype)
    copy(low, packed, x)
    return packed


def contiguous_result(low: Lowering, out: View) -> View:
    """`out`, or contiguous memory instead, which `copy` moves there afterwards."""
    return out if out.is_contiguous else low.temporary(out.shape, out.dtype)


def dimension(dim: int, dims: int) -> int:
    """The non-negative index of a dimension that may be negative."""
    return dim % max(dims, 1)


def at_least_1d(view: View) -> View:
    """A scalar as a vector of one element, as torch's indexing ops see it."""
    return view if view.shape else view.with_shape((1,), (1,))


def narrow(view: View, dim: int, start: int, length: int, step: int = 1) -> View:
    """``length`` elements along a dimension, starting at `start`."""
    shape = (*view.shape[:dim], length, *view.shape[dim + 1 :])
    stride = view.strides[dim]
    strides = (*view.strides[:dim], stride * step, *view.strides[dim + 1 :])
    return view.with_shape(shape, strides, view.offset + start * stride)


def select(view: View, dim: int, index: int) -> View:
    """What is at one index of a dimension, without that dimension."""
    if index < 0:
        index += view.shape[dim]
    part = narrow(view, dim, index, 1)
    return part.with_shape(_without(part.shape, dim), _without(part.strides, dim))


def diagonal(view: View, offset: int, dim1: int, dim2: int) -> View:
    """As torch.diagonal."""
    rank = len(view.shape)
    dim1, dim2 = dimension(dim1, rank), dimension(dim2, rank)
    row, column = max(-offset, 0), max(offset, 0)
    length = max(min(view.shape[dim1] - row, view.shape[dim2] - column), 0)
    start = row * view.strides[dim1] + column * view.strides[dim2] if length else 0
    kept = [d for d in range(rank) if d not in (dim1, dim2)]
    return view.with_shape(
        (*(view.shape[d] for d in kept), length),
        (*(view.strides[d] for d in kept), view.strides[dim1] + view.strides[dim2]),
        view.offset + start,
    )


def _without(values: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*values[:dim], *values[dim + 1 :])
