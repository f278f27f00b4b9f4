"""Reads and writes at indices that are values of a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import Instruction, View
from fastnn.capture.lowering.layout import (
    FLOATING,
    MOVABLE,
    at_least_1d,
    copy,
    dimension,
    fill,
    narrow,
    need,
    need_same_dtype,
    overlaps_itself,
)
from fastnn.capture.lowering.table import ERRORS, Lowering, lowers

# Ops that write at indices also read their result, as the last operand: the rest stays unchanged.

_OUTSIDE = "index {index} is out of bounds for dimension {dim} with size {size}"
_IN_SELF = "index out of range in self"
_ERRORS: dict[str, tuple[type[Exception], str]] = {
    "gather": (RuntimeError, _OUTSIDE),
    "scatter": (RuntimeError, _OUTSIDE),
    "scatter_add": (RuntimeError, _OUTSIDE),
    "index": (IndexError, _OUTSIDE),
    "index_put": (IndexError, _OUTSIDE),
    "index_put_add": (IndexError, _OUTSIDE),
    "index_add": (RuntimeError, _OUTSIDE),
    "index_copy": (IndexError, "index_copy_(): " + _OUTSIDE),
    "index_select": (IndexError, _IN_SELF),
    "embedding": (IndexError, _IN_SELF),
}

_READS = frozenset({"gather", "index", "index_select", "embedding"})
_ADDS = frozenset({torch.float32, torch.float64, torch.int64})


def _error(node: Instruction, index: int) -> Exception:
    """Torch's own error, which for some ops depends on the kernel that torch chooses."""
    indexed = node.ins[0] if node.name in _READS else node.outs[0]
    lowest = -1 if node.code[1] else 0
    wrong = 0
    for dim, (size, addressed_by) in enumerate(zip(indexed.shape, node.code[2:], strict=True)):
        if addressed_by < 0 and not lowest * size <= index < size:
            wrong = dim
            break
    size = indexed.shape[wrong] if indexed.shape else 1
    kind, message = _ERRORS[node.name]
    if node.name == "index_add" and len(indexed.shape) == 1:
        kind, message = IndexError, _IN_SELF
    elif node.name == "index_select" and wrong == 1:
        kind, message = RuntimeError, "INDICES element is out of DATA bounds, id={index} axis_dim={size}"
    return kind(message.format(index=index, dim=wrong, size=size))


ERRORS.update(dict.fromkeys(_ERRORS, _error))


def _flag(low: Lowering) -> View:
    return low.temporary((1,), torch.int64)


def _need_indices(*indices: View) -> None:
    for index in indices:
        if index.dtype != torch.int64:
            raise Unsupported(f"indices of dtype {index.dtype}")


def _need_writable(out: View, *read: View) -> None:
    """Refuse a result whose elements overlap, or that the op also reads through another operand."""
    if overlaps_itself(out):
        raise Unsupported("the result overlaps itself")
    if any(view.storage is out.storage for view in read):
        raise Unsupported("the result shares memory with what is written to it")


def _along(index: View, shape: tuple[int, ...], dim: int) -> View:
    """A vector of indices along one dimension of `shape`."""
    index = at_least_1d(index)
    return index.with_shape(shape, tuple(index.strides[0] if d == dim else 0 for d in range(len(shape))))


def _one_of(rank: int, dim: int) -> list[int]:
    """The code of a tensor with one indexed dimension; loops run over the others."""
    return [1, 0, *(~0 if d == dim else d for d in range(rank))]


# ---- one index tensor along one dimension ----


@lowers("gather.default")
def _gather(low: Lowering, out: View, x: View, dim: int, index: View, *, sparse_grad: bool = False) -> None:
    need([out, x, index], MOVABLE)
    _need_indices(index)
    out, x, index = at_least_1d(out), at_least_1d(x), at_least_1d(index)
    rank = len(x.shape)
    low.emit("gather", [out, _flag(low)], [x, index], code=_one_of(rank, dimension(dim, rank)))


@lowers("index_select.default")
def _index_select(low: Lowering, out: View, x: View, dim: int, index: View) -> None:
    need([out, x, index], MOVABLE)
    _need_indices(index)
    out, x = at_least_1d(out), at_least_1d(x)
    dim = dimension(dim, len(x.shape))
    ins = [x, _along(index, out.shape, dim)]
    low.emit("index_select", [out, _flag(low)], ins, code=_one_of(len(x.shape), dim))


@lowers("embedding.default")
def _embedding(
    low: Lowering,
    out: View,
    weight: View,
    index: View,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> None:
    need([out, weight, index], MOVABLE)
    _need_indices(index)
    rows = index.with_shape(out.shape, (*index.strides, 0))
    code = [1, 0, ~0, len(index.shape)]
    low.emit("embedding", [out, _flag(low)], [weight, rows], code=code)


@lowers("embedding_dense_backward.default")
def _embedding_dense_backward(
    low: Lowering,
    out: View,
    grad: View,
    index: View,
    num_weights: int,
    padding_idx: int,
    scale_grad_by_freq: bool,
) -> None:
    need([out, grad], FLOATING)
    _need_indices(index)
    if scale_grad_by_freq:
        raise Unsupported("gradients scaled by frequency")
    grad_shape = (*index.shape, out.shape[1])
    if grad.shape != grad_shape:
        raise Unsupported("a gradient of another shape than the embedding's")
    need([grad], FLOATING)
    fill(low, out, 0)
    rows = index.with_shape(grad_shape, (*index.strides, 0))
    low.emit("embedding_add", [out], [grad, rows, out], code=[1, 0, ~0, len(index.shape), padding_idx])


def _need_write(low: Lowering, out: View, x: View, index: View, source: View | None) -> None:
    read = [index] if source is None else [index, source]
    need([out, x, *read], MOVABLE)
    _need_indices(index)
    _need_writable(out, *read)
    if source is not None:
        need_same_dtype(out, source)


def _number(low: Lowering, value: float, like: View, shape: tuple[int, ...]) -> View:
    """A number as a tensor of `shape`."""
    if like.dtype == torch.int64 and abs(value) > 2**53:
        raise Unsupported("a large integer")
    constant = low.temporary((), like.dtype)
    fill(low, constant, value)
    return constant.expand(shape)


@lowers("scatter.src", "scatter_.src")
def _scatter(low: Lowering, out: View, x: View, dim: int, index: View, source: View) -> None:
    _need_write(low, out, x, index, source)
    copy(low, out, x)
    _emit_scatter(low, "scatter", out, dim, index, source)


@lowers("scatter.value", "scatter_.value")
def _scatter_value(low: Lowering, out: View, x: View, dim: int, index: View, value: float) -> None:
    _need_write(low, out, x, index, None)
    source = _number(low, value, out, index.shape)
    copy(low, out, x)
    _emit_scatter(low, "scatter", out, dim, index, source)


@lowers("scatter_add.default", "scatter_add_.default")
def _scatter_add(low: Lowering, out: View, x: View, dim: int, index: View, source: View) -> None:
    _need_write(low, out, x, index, source)
    need([out], _ADDS)
    copy(low, out, x)
    _emit_scatter(low, "scatter_add", out, dim, index, source)


def _emit_scatter(low: Lowering, name: str, out: View, dim: int, index: View, source: View) -> None:
    out, index, source = at_least_1d(out), at_least_1d(index), at_least_1d(source)
    if index.numel == 0:
        return
    source = source.with_shape(index.shape, source.strides)  # may be larger than the index
    code = _one_of(len(out.shape), dimension(dim, len(out.shape)))
    low.emit(name, [out, _flag(low)], [source, index, out], [1.0], code)


@lowers("index_add.default", "index_add_.default")
def _index_add(
    low: Lowering, out: View, x: View, dim: int, index: View, source: View, *, alpha: float = 1
) -> None:
    _need_write(low, out, x, index, source)
    need([out], _ADDS)
    copy(low, out, x)
    _emit_along(low, "index_add", out, dim, index, source, alpha)


@lowers("index_copy.default", "index_copy_.default")
def _index_copy(low: Lowering, out: View, x: View, dim: int, index: View, source: View) -> None:
    _need_write(low, out, x, index, source)
    copy(low, out, x)
    _emit_along(low, "index_copy", out, dim, index, source)


def _emit_along(
    low: Lowering, name: str, out: View, dim: int, index: View, source: View, alpha: float = 1
) -> None:
    out, source = at_least_1d(out), at_least_1d(source)
    dim = dimension(dim, len(out.shape))
    ins = [source, _along(index, source.shape, dim), out]
    low.emit(name, [out, _flag(low)], ins, [alpha], _one_of(len(out.shape), dim))


@lowers("index_fill.int_Scalar", "index_fill_.int_Scalar", "index_fill.int_Tensor", "index_fill_.int_Tensor")
def _index_fill(low: Lowering, out: View, x: View, dim: int, index: View, value: View | float) -> None:
    _need_write(low, out, x, index, value if isinstance(value, View) else None)
    whole = at_least_1d(out)
    dim = dimension(dim, len(whole.shape))
    shape = narrow(whole, dim, 0, at_least_1d(index).shape[0]).shape
    source = value.expand(shape) if isinstance(value, View) else _number(low, value, out, shape)
    copy(low, out, x)
    code = _one_of(len(whole.shape), dim)
    code[1] = 1  # unlike its siblings, it counts negative indices from the end
    low.emit("index_put", [whole, _flag(low)], [source, _along(index, shape, dim), whole], code=code)


# ---- several index tensors ----


class _Indexed:
    """How torch reads ``x[indices]``: the shape of that, indices broadcast to it, and the code for `x`."""

    def __init__(self, x: View, indices: Sequence[View | None]) -> None:
        given = [index for index in indices if index is not None]
        if not given:
            raise Unsupported("no index tensor")
        _need_indices(*given)
        where = [d for d, index in enumerate(indices) if index is not None]
        plain = [d for d in range(len(x.shape)) if d not in where]
        common = tuple(torch.broadcast_shapes(*(index.shape for index in given)))
        # The indices' dimensions replace the indexed ones, or come first if those are not adjacent.
        first = where[0] if where == list(range(where[0], where[-1] + 1)) else 0
        sizes = [x.shape[d] for d in plain]
        self.shape: tuple[int, ...] = (*sizes[:first], *common, *sizes[first:])
        self.code = [len(given), 1, *[0] * len(x.shape)]
        for nth, d in enumerate(plain):
            self.code[2 + d] = nth if nth < first else nth + len(common)
        for nth, d in enumerate(where):
            self.code[2 + d] = ~nth
        after = len(plain) - first
        self.indices = [
            index.with_shape(self.shape, (*[0] * first, *index.expand(common).strides, *[0] * after))
            for index in given
        ]


@lowers("index.Tensor")
def _index(low: Lowering, out: View, x: View, indices: Sequence[View | None]) -> None:
    need([out, x], MOVABLE)
    indexed = _Indexed(x, indices)
    low.emit("index", [out, _flag(low)], [x, *indexed.indices], code=indexed.code)


@lowers("index_put.default", "index_put_.default", "_index_put_impl_.default")
def _index_put(
    low: Lowering,
    out: View,
    x: View,
    indices: Sequence[View | None],
    values: View,
    accumulate: bool = False,
    unsafe: bool = False,
) -> None:
    need([out, x, values], _ADDS if accumulate else MOVABLE)
    need_same_dtype(out, values)
    indexed = _Indexed(x, indices)
    _need_writable(out, values, *indexed.indices)
    if len(indexed.shape) > 8 or len(values.shape) > len(indexed.shape):
        raise Unsupported(f"{max(len(indexed.shape), len(values.shape))} dimensions")
    copy(low, out, x)
    name = "index_put_add" if accumulate else "index_put"
    ins = [values.expand(indexed.shape), *indexed.indices, out]
    low.emit(name, [out, _flag(low)], ins, [1.0], indexed.code)
