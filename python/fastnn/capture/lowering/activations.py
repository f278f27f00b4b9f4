"""Activations of elements, and their gradients."""

from __future__ import annotations

from typing import Any

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import Expr, View
from fastnn.capture.lowering.elementwise import clamped, emit, overloads
from fastnn.capture.lowering.table import Lowering, lowers


def _emit(low: Lowering, out: View, expr: Expr, *operands: View) -> None:
    if not all(operand.dtype is out.dtype and out.dtype.is_floating_point for operand in operands):
        raise Unsupported("an activation of mixed types or of integers")
    emit(low, out, expr, out.dtype, *operands)


def gradient_of(op: str) -> list[str]:
    """Names of an op that gives a gradient: torch's out= form names its result differently."""
    return [f"{op}.default", f"{op}.grad_input"]


@lowers(*overloads("gelu"))
def _gelu(low: Lowering, out: View, /, x: View, *, approximate: str = "none", **_: Any) -> None:
    _emit(low, out, ("gelu" if approximate == "none" else "gelu_tanh", x), x)


@lowers(*gradient_of("gelu_backward"))
def _gelu_backward(
    low: Lowering, out: View, /, g: View, x: View, *, approximate: str = "none", **_: Any
) -> None:
    name = "gelu_backward" if approximate == "none" else "gelu_tanh_backward"
    _emit(low, out, (name, g, x), g, x)


@lowers(*overloads("silu"))
def _silu(low: Lowering, out: View, /, x: View, **_: Any) -> None:
    _emit(low, out, ("silu", x), x)


def _by_micro_op(op: str) -> None:
    @lowers(*gradient_of(op))
    def rule(low: Lowering, out: View, /, g: View, saved: View, **_: Any) -> None:
        _emit(low, out, (op, g, saved), g, saved)


for _op in ("silu_backward", "sigmoid_backward", "tanh_backward"):
    _by_micro_op(_op)


@lowers(*overloads("threshold"))
def _threshold(low: Lowering, out: View, /, x: View, threshold: float, value: float, **_: Any) -> None:
    _emit(low, out, ("where", ("le", x, threshold), value, x), x)


@lowers(*gradient_of("threshold_backward"))
def _threshold_backward(low: Lowering, out: View, /, g: View, x: View, threshold: float, **_: Any) -> None:
    _emit(low, out, ("gate", g, x, threshold), g, x)


@lowers(*overloads("hardtanh"))
def _hardtanh(low: Lowering, out: View, /, x: View, min: float = -1, max: float = 1, **_: Any) -> None:
    _emit(low, out, clamped(x, min, max), x)


@lowers(*gradient_of("hardtanh_backward"))
def _hardtanh_backward(
    low: Lowering, out: View, /, g: View, x: View, min_val: float, max_val: float, **_: Any
) -> None:
    inside: Expr = ("logical_and", ("gt", x, min_val), ("lt", x, max_val))
    _emit(low, out, ("where", inside, g, 0), g, x)


@lowers(*overloads("leaky_relu"))
def _leaky_relu(low: Lowering, out: View, /, x: View, negative_slope: float = 0.01, **_: Any) -> None:
    _emit(low, out, ("where", ("gt", x, 0), x, ("mul", x, negative_slope)), x)


@lowers(*gradient_of("leaky_relu_backward"))
def _leaky_relu_backward(
    low: Lowering, out: View, /, g: View, x: View, negative_slope: float, self_is_result: bool, **_: Any
) -> None:
    _emit(low, out, ("where", ("gt", x, 0), g, ("mul", g, negative_slope)), g, x)


@lowers(*overloads("elu"))
def _elu(
    low: Lowering, out: View, /, x: View, alpha: float = 1, scale: float = 1, input_scale: float = 1, **_: Any
) -> None:
    below: Expr = ("mul", ("expm1", _times(x, input_scale)), alpha * scale)
    _emit(low, out, ("where", ("le", x, 0), below, _times(x, scale)), x)


@lowers(*gradient_of("elu_backward"))
def _elu_backward(
    low: Lowering,
    out: View,
    /,
    g: View,
    alpha: float,
    scale: float,
    input_scale: float,
    is_result: bool,
    saved: View,
    **_: Any,
) -> None:
    if is_result:
        slope: Expr = ("mul", ("add", saved, alpha * scale), input_scale)
    else:
        slope = ("mul", ("exp", _times(saved, input_scale)), input_scale * alpha * scale)
    _emit(low, out, ("where", ("le", saved, 0), ("mul", g, slope), _times(g, scale)), g, saved)


def _times(x: Expr, factor: float) -> Expr:
    return x if factor == 1 else ("mul", x, factor)


@lowers(*overloads("softplus"))
def _softplus(low: Lowering, out: View, /, x: View, beta: float = 1, threshold: float = 20, **_: Any) -> None:
    z = _times(x, beta)
    curve: Expr = ("log1p", ("exp", z))
    if beta != 1:
        curve = ("div", curve, beta)
    _emit(low, out, ("where", ("gt", z, threshold), x, curve), x)


@lowers(*gradient_of("softplus_backward"))
def _softplus_backward(
    low: Lowering, out: View, /, g: View, x: View, beta: float, threshold: float, **_: Any
) -> None:
    z = _times(x, beta)
    slope: Expr = ("sigmoid", z)
    _emit(low, out, ("where", ("gt", z, threshold), g, ("mul", g, slope)), g, x)


@lowers("log_sigmoid_forward.default")
def _log_sigmoid(low: Lowering, outs: list[View], /, x: View) -> None:
    out, buffer = outs
    decay: Expr = ("exp", ("neg", ("abs", x)))
    _emit(low, out, ("sub", ("minimum", x, 0), ("log1p", decay)), x)
    if buffer.numel:
        _emit(low, buffer, decay, x)


@lowers(*gradient_of("log_sigmoid_backward"))
def _log_sigmoid_backward(low: Lowering, out: View, /, g: View, x: View, buffer: View, **_: Any) -> None:
    decay: Expr = ("exp", ("neg", ("abs", x)))
    part: Expr = ("div", decay, ("add", decay, 1))
    _emit(low, out, ("mul", g, ("where", ("lt", x, 0), ("sub", 1, part), part)), g, x)


@lowers(*overloads("mish"))
def _mish(low: Lowering, out: View, /, x: View, **_: Any) -> None:
    _emit(low, out, ("mul", x, ("tanh", _soft(x))), x)


@lowers("mish_backward.default")
def _mish_backward(low: Lowering, out: View, /, g: View, x: View) -> None:
    t: Expr = ("tanh", _soft(x))
    bend: Expr = ("mul", ("mul", x, ("sigmoid", x)), ("sub", 1, ("square", t)))
    _emit(low, out, ("mul", g, ("add", t, bend)), g, x)


def _soft(x: View) -> Expr:
    """log(1 + e^x) of any x."""
    return ("add", ("relu", x), ("log1p", ("exp", ("neg", ("abs", x)))))
