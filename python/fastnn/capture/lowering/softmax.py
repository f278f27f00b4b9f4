"""Softmax and the losses of classifiers (csrc/program/softmax_cpu.cpp, nll_cpu.cpp)."""

from __future__ import annotations

import torch

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import View
from fastnn.capture.lowering.table import ERRORS, Lowering, lowers

SOFTMAX, LOG_SOFTMAX = 0, 1
NONE, SUM = 0, 2  # torch's numbers for reductions: a loss for each row, their sum

ERRORS["nll_loss"] = lambda _, index: IndexError(f"Target {index} is out of bounds.")

# With more strided classes than this, the copies of a few rows would not fit in L2.
_MOST_STRIDED_CLASSES = 16384


def _dimension(dim: int, x: View) -> int:
    return dim % max(len(x.shape), 1)


def _check(dim: int, *views: View) -> None:
    for view in views:
        if view.dtype not in (torch.float32, torch.float64) or view.dtype != views[0].dtype:
            raise Unsupported(f"softmax of {view.dtype}")
        if len(view.shape) > 8:
            raise Unsupported("softmax of more than 8 dimensions")
        if view.shape and view.strides[dim] != 1 and view.shape[dim] > _MOST_STRIDED_CLASSES:
            raise Unsupported("softmax over many values that are not contiguous")


def _softmax(low: Lowering, out: View, x: View, dim: int, form: int) -> None:
    dim = _dimension(dim, x)
    _check(dim, x, out)
    low.emit("softmax", [out], [x], code=[dim, form])


def _gradient(low: Lowering, out: View, g: View, y: View, dim: int, form: int) -> None:
    dim = _dimension(dim, y)
    _check(dim, y, g, out)
    low.emit("softmax_gradient", [out], [g, y], code=[dim, form])


# The arguments after the dimension concern 16-bit types, which are refused.


@lowers("_softmax.default")
def _plain(low: Lowering, out: View, x: View, dim: int, half_to_float: bool) -> None:
    _softmax(low, out, x, dim, SOFTMAX)


@lowers("_log_softmax.default")
def _logarithm(low: Lowering, out: View, x: View, dim: int, half_to_float: bool) -> None:
    _softmax(low, out, x, dim, LOG_SOFTMAX)


@lowers("_softmax_backward_data.default")
def _plain_gradient(low: Lowering, out: View, g: View, y: View, dim: int, input_dtype: torch.dtype) -> None:
    _gradient(low, out, g, y, dim, SOFTMAX)


@lowers("_log_softmax_backward_data.default")
def _logarithm_gradient(
    low: Lowering, out: View, g: View, y: View, dim: int, input_dtype: torch.dtype
) -> None:
    _gradient(low, out, g, y, dim, LOG_SOFTMAX)


def classes_last(x: View) -> View:
    """The view with classes last, from (classes) or (N, classes, ...)."""
    if len(x.shape) == 1:
        return x
    order = [0, *range(2, len(x.shape)), 1]
    return x.with_shape(tuple(x.shape[d] for d in order), tuple(x.strides[d] for d in order))


def _of_rows(view: View, like: View) -> View:
    """One value for each row, or one for all, in the shape of `like`, whose last dimension is the classes."""
    if len(view.shape) == len(like.shape) - 1:
        view = view.with_shape((*view.shape, 1), (*view.strides, 0))
    return view.expand(like.shape)


def _check_loss(x: View, target: View, weight: View | None) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise Unsupported(f"a loss of {x.dtype}")
    if target.dtype not in (torch.int64, torch.uint8):
        raise Unsupported(f"classes of {target.dtype}")
    if weight is not None and weight.dtype != x.dtype:
        raise Unsupported(f"class weights of {weight.dtype}")


@lowers("nll_loss_forward.default", "nll_loss2d_forward.default")
def _nll_loss(
    low: Lowering,
    out: list[View],
    x: View,
    target: View,
    weight: View | None,
    reduction: int,
    ignore_index: int,
) -> None:
    loss, total_weight = out
    _check_loss(x, target, weight)
    rows = classes_last(x)
    if len(x.shape) == 1 and reduction == NONE:
        reduction = SUM  # torch treats a single row so, as its total weight shows
    if reduction == NONE:
        loss = _of_rows(loss, rows)
    bad = low.temporary((1,), torch.int64)
    low.emit(
        "nll_loss",
        [loss, total_weight, bad],
        [rows, _of_rows(target, rows), *([] if weight is None else [weight])],
        code=[reduction, ignore_index, weight is not None],
    )


@lowers("nll_loss_backward.default", "nll_loss2d_backward.default")
def _nll_gradient(
    low: Lowering,
    out: View,
    g: View,
    x: View,
    target: View,
    weight: View | None,
    reduction: int,
    ignore_index: int,
    total_weight: View,
) -> None:
    _check_loss(x, target, weight)
    rows = classes_last(out)
    low.emit(
        "nll_gradient",
        [rows],
        [_of_rows(g, rows), _of_rows(target, rows), total_weight, *([] if weight is None else [weight])],
        code=[reduction, ignore_index, weight is not None],
    )
