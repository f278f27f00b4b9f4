"""Losses of elements, with their mean, sum or neither, and their gradients."""

from __future__ import annotations

from typing import Any

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import Expr, View
from fastnn.capture.lowering.activations import gradient_of
from fastnn.capture.lowering.table import Lowering, lowers
from fastnn.capture.lowering.types import check

_NONE, _MEAN = 0, 1  # of at::Reduction


def _broadcast(*views: View | None) -> tuple[int, ...]:
    rank = max(len(view.shape) for view in views if view is not None)
    shape = [1] * rank
    for view in views:
        for d, n in enumerate(view.shape[::-1] if view is not None else ()):
            if n != 1:
                shape[rank - 1 - d] = n
    return tuple(shape)


def _emit(low: Lowering, out: View, expr: Expr, reduction: int, *operands: View | None) -> None:
    given = [operand for operand in operands if operand is not None]
    if not all(operand.dtype is out.dtype and out.dtype.is_floating_point for operand in given):
        raise Unsupported("a loss of mixed types or of integers")
    if reduction == _NONE:
        check(out, *given)
        low.elementwise(out, expr)
        return
    losses = low.temporary(_broadcast(*given), out.dtype)
    check(losses, *given)
    low.elementwise(losses, expr)
    low.emit("sum", [out], [losses], numbers=[losses.numel if reduction == _MEAN else 1])


def _share(x: View, target: View, reduction: int) -> float:
    """What each element's slope is divided by."""
    return float(_count(x, target)) if reduction == _MEAN else 1.0


def _count(x: View, target: View) -> int:
    count = 1
    for n in _broadcast(x, target):
        count *= n
    return count


def _gradient(low: Lowering, out: View, expr: Expr, *operands: View | None) -> None:
    _emit(low, out, expr, _NONE, *operands)


def _scaled(g: View, factor: float) -> Expr:
    return g if factor == 1 else ("mul", g, factor)


@lowers("mse_loss.default", "mse_loss.out")
def _mse(low: Lowering, out: View, /, x: View, target: View, reduction: int = _MEAN, **_: Any) -> None:
    _emit(low, out, ("square", ("sub", x, target)), reduction, x, target)


@lowers(*gradient_of("mse_loss_backward"))
def _mse_backward(
    low: Lowering, out: View, /, g: View, x: View, target: View, reduction: int, **_: Any
) -> None:
    factor = 2 / max(_share(x, target, reduction), 1)
    _gradient(low, out, ("mul", ("sub", x, target), _scaled(g, factor)), g, x, target)


@lowers("smooth_l1_loss.default", "smooth_l1_loss.out")
def _smooth_l1(
    low: Lowering, out: View, /, x: View, target: View, reduction: int = _MEAN, beta: float = 1, **_: Any
) -> None:
    a: Expr = ("abs", ("sub", x, target))
    if beta == 0:
        return _emit(low, out, a, reduction, x, target)
    near: Expr = ("div", ("mul", ("square", a), 0.5), beta)
    expr: Expr = ("where", ("ge", a, beta), ("sub", a, 0.5 * beta), near)
    _emit(low, out, expr, reduction, x, target)


@lowers(*gradient_of("smooth_l1_loss_backward"))
def _smooth_l1_backward(
    low: Lowering, out: View, /, g: View, x: View, target: View, reduction: int, beta: float, **_: Any
) -> None:
    d: Expr = ("sub", x, target)
    if beta == 0:
        slope: Expr = ("sgn", d)
    else:
        slope = ("where", ("ge", ("abs", d), beta), ("sgn", d), ("div", d, beta))
    factor = 1 / max(_share(x, target, reduction), 1)
    _gradient(low, out, ("mul", slope, _scaled(g, factor)), g, x, target)


@lowers("huber_loss.default", "huber_loss.out")
def _huber(
    low: Lowering, out: View, /, x: View, target: View, reduction: int = _MEAN, delta: float = 1, **_: Any
) -> None:
    a: Expr = ("abs", ("sub", x, target))
    far: Expr = ("mul", ("sub", a, 0.5 * delta), delta)
    near: Expr = ("mul", ("square", a), 0.5)
    _emit(low, out, ("where", ("gt", a, delta), far, near), reduction, x, target)


@lowers("huber_loss_backward.default", "huber_loss_backward.out")
def _huber_backward(
    low: Lowering, out: View, /, g: View, x: View, target: View, reduction: int, delta: float, **_: Any
) -> None:
    d: Expr = ("sub", x, target)
    slope: Expr = ("where", ("gt", ("abs", d), delta), ("mul", ("sgn", d), delta), d)
    factor = 1 / max(_share(x, target, reduction), 1)
    _gradient(low, out, ("mul", slope, _scaled(g, factor)), g, x, target)


@lowers("binary_cross_entropy_with_logits.default", "binary_cross_entropy_with_logits.out")
def _bce_with_logits(
    low: Lowering,
    out: View,
    /,
    x: View,
    target: View,
    weight: View | None = None,
    pos_weight: View | None = None,
    reduction: int = _MEAN,
    **_: Any,
) -> None:
    decay: Expr = ("exp", ("neg", ("abs", x)))
    log_sigmoid: Expr = ("sub", ("minimum", x, 0), ("log1p", decay))
    if pos_weight is not None:
        log_sigmoid = ("mul", log_sigmoid, ("multiply_add", ("sub", pos_weight, 1), target, 1))
    expr: Expr = ("sub", ("mul", ("sub", 1, target), x), log_sigmoid)
    if weight is not None:
        expr = ("mul", expr, weight)
    _emit(low, out, expr, reduction, x, target, weight, pos_weight)


@lowers("binary_cross_entropy.default", "binary_cross_entropy.out")
def _bce(
    low: Lowering,
    out: View,
    /,
    x: View,
    target: View,
    weight: View | None = None,
    reduction: int = _MEAN,
    **_: Any,
) -> None:
    # Logarithms are kept from -inf as torch keeps them.
    of_rest: Expr = ("maximum", ("log1p", ("neg", x)), -100)
    of_target: Expr = ("maximum", ("log", x), -100)
    expr: Expr = ("sub", ("mul", ("sub", target, 1), of_rest), ("mul", target, of_target))
    if weight is not None:
        expr = ("mul", expr, weight)
    _emit(low, out, expr, reduction, x, target, weight)


@lowers(*gradient_of("binary_cross_entropy_backward"))
def _bce_backward(
    low: Lowering,
    out: View,
    /,
    g: View,
    x: View,
    target: View,
    weight: View | None = None,
    reduction: int = _MEAN,
    **_: Any,
) -> None:
    spread: Expr = ("maximum", ("mul", ("sub", 1, x), x), 1e-12)
    expr: Expr = ("div", ("mul", ("sub", x, target), g), spread)
    if weight is not None:
        expr = ("mul", expr, weight)
    if reduction == _MEAN:
        expr = ("div", expr, max(_share(x, target, reduction), 1))
    _gradient(low, out, expr, g, x, target, weight)
