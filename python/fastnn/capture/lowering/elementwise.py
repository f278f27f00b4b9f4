"""Arithmetic, comparisons and functions of elements."""

from __future__ import annotations

from typing import Any

import torch

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import Expr, View
from fastnn.capture.lowering.table import Lowering, lowers
from fastnn.capture.lowering.types import check, floating, promoted

# `out` is positional only: torch's overloads with an argument of that name pass it too, as the same View.


def overloads(op: str, *kinds: str) -> list[str]:
    """Names of an op: its functional, in-place and out= forms."""
    found = []
    for kind in kinds or ("default",):
        found += [f"{op}.{kind}", f"{op}_.{kind}", f"{op}.{kind}_out"]
    return [*found, f"{op}.out"]


def emit(low: Lowering, out: View, expr: Expr, dtype: torch.dtype, *operands: Any) -> None:
    """``out = expr`` of these operands in type `dtype`, if elementwise programs can compute that."""
    check(out, *operands)
    low.elementwise(out, expr, dtype)


def arithmetic(*operands: Any) -> torch.dtype:
    """The type of a sum or product; bools are refused."""
    dtype = promoted(*operands)
    if dtype is torch.bool:
        raise Unsupported("arithmetic of bools")
    return dtype


def plus(a: Expr, b: Expr, times: float, dtype: torch.dtype) -> Expr:
    """``a + times * b``."""
    if times == 1:
        return ("add", a, b)
    if times == -1:
        return ("sub", a, b)
    if dtype.is_floating_point:
        return ("multiply_add", b, times, a)
    return ("add", a, ("mul", b, times))


@lowers(*overloads("add", "Tensor", "Scalar"))
def _add(low: Lowering, out: View, /, a: Any, b: Any, alpha: float = 1, **_: Any) -> None:
    dtype = arithmetic(a, b)
    emit(low, out, plus(a, b, alpha, dtype), dtype, a, b, alpha)


@lowers(*overloads("sub", "Tensor", "Scalar"))
def _sub(low: Lowering, out: View, /, a: Any, b: Any, alpha: float = 1, **_: Any) -> None:
    dtype = arithmetic(a, b)
    emit(low, out, plus(a, b, -alpha, dtype), dtype, a, b, alpha)


@lowers("rsub.Tensor", "rsub.Scalar")
def _rsub(low: Lowering, out: View, /, a: Any, b: Any, alpha: float = 1) -> None:
    dtype = arithmetic(a, b)
    emit(low, out, plus(b, a, -alpha, dtype), dtype, a, b, alpha)


@lowers(*overloads("mul", "Tensor", "Scalar"))
def _mul(low: Lowering, out: View, /, a: Any, b: Any, **_: Any) -> None:
    dtype = promoted(a, b)
    emit(low, out, ("logical_and" if dtype is torch.bool else "mul", a, b), dtype, a, b)


@lowers(*overloads("div", "Tensor", "Scalar"))
def _div(low: Lowering, out: View, /, a: Any, b: Any, **_: Any) -> None:
    emit(low, out, ("div", a, b), floating(promoted(a, b)), a, b)


@lowers(*overloads("div", "Tensor_mode", "Scalar_mode"), "div.out_mode")
def _div_rounded(
    low: Lowering, out: View, /, a: Any, b: Any, *, rounding_mode: str | None = None, **_: Any
) -> None:
    dtype = promoted(a, b)
    if rounding_mode == "floor" or not (rounding_mode is None or dtype.is_floating_point):
        raise Unsupported(f"division rounded by {rounding_mode} of {dtype}")
    quotient: Expr = ("div", a, b)
    emit(low, out, ("trunc", quotient) if rounding_mode else quotient, floating(dtype), a, b)


def _of_floats(op: str, name: str) -> None:
    @lowers(*overloads(op))
    def rule(low: Lowering, out: View, /, a: View, **_: Any) -> None:
        emit(low, out, (name, a), floating(a.dtype), a)


for _op in (
    *("reciprocal", "sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "log2", "log10"),
    *("sin", "cos", "tan", "atan", "erf", "sigmoid", "tanh"),
):
    _of_floats(_op, _op)


def _of_numbers(op: str, name: str) -> None:
    @lowers(*overloads(op))
    def rule(low: Lowering, out: View, /, a: View, **_: Any) -> None:
        emit(low, out, (name, a), arithmetic(a), a)


for _op, _name in {"neg": "neg", "abs": "abs", "sgn": "sgn", "sign": "sgn", "relu": "relu"}.items():
    _of_numbers(_op, _name)


def _rounded(op: str) -> None:
    @lowers(*overloads(op))
    def rule(low: Lowering, out: View, /, a: View, **_: Any) -> None:
        emit(low, out, (op, a) if a.dtype.is_floating_point else a, a.dtype, a)


for _op in ("floor", "ceil", "round", "trunc"):
    _rounded(_op)


def _of_two(op: str, name: str, *kinds: str) -> None:
    @lowers(*overloads(op, *kinds))
    def rule(low: Lowering, out: View, /, a: Any, b: Any, **_: Any) -> None:
        dtype = arithmetic(a, b)
        if not (dtype.is_floating_point or name in ("minimum", "maximum")):
            raise Unsupported(f"{op} of integers")
        emit(low, out, (name, a, b), dtype, a, b)


_of_two("minimum", "minimum")
_of_two("maximum", "maximum")
_of_two("fmod", "fmod", "Tensor", "Scalar")
_of_two("remainder", "remainder", "Tensor", "Scalar")
_of_two("atan2", "atan2")


@lowers(*overloads("square"))
def _square(low: Lowering, out: View, /, a: View, **_: Any) -> None:
    emit(low, out, ("square", a), arithmetic(a), a)


def _powers(a: View) -> dict[float, Expr]:
    return {
        1: a,
        2: ("square", a),
        3: ("mul", ("square", a), a),
        0.5: ("sqrt", a),
        -0.5: ("rsqrt", a),
        -1: ("reciprocal", a),
        -2: ("reciprocal", ("square", a)),
    }


@lowers("pow.Tensor_Scalar", "pow_.Scalar", "pow.Tensor_Scalar_out")
def _pow_of_number(low: Lowering, out: View, /, a: View, exponent: float, **_: Any) -> None:
    dtype = arithmetic(a, exponent)
    if not dtype.is_floating_point and exponent not in (1, 2, 3):
        raise Unsupported(f"integers to the power {exponent}")
    expr = 1.0 if exponent == 0 else _powers(a).get(exponent, ("pow", a, exponent))
    emit(low, out, expr, dtype, a, exponent)


@lowers("pow.Tensor_Tensor", "pow_.Tensor", "pow.Tensor_Tensor_out", "pow.Scalar", "pow.Scalar_out")
def _pow(low: Lowering, out: View, /, a: Any, exponent: Any, **_: Any) -> None:
    dtype = arithmetic(a, exponent)
    if not dtype.is_floating_point:
        raise Unsupported("powers of integers")
    emit(low, out, ("pow", a, exponent), dtype, a, exponent)


def clamped(a: Expr, low: Any, high: Any) -> Expr:
    """Clamped between bounds, each of which may be missing."""
    if low is not None:
        a = ("maximum", a, low)
    return a if high is None else ("minimum", a, high)


@lowers(*overloads("clamp", "default", "Tensor"))
def _clamp(low: Lowering, out: View, /, a: View, min: Any = None, max: Any = None, **_: Any) -> None:
    bounds = [bound for bound in (min, max) if bound is not None]
    emit(low, out, clamped(a, min, max), arithmetic(a, *bounds), a, *bounds)


@lowers(*overloads("clamp_min", "default", "Tensor"))
def _clamp_min(low: Lowering, out: View, /, a: View, min: Any, **_: Any) -> None:
    emit(low, out, ("maximum", a, min), arithmetic(a, min), a, min)


@lowers(*overloads("clamp_max", "default", "Tensor"))
def _clamp_max(low: Lowering, out: View, /, a: View, max: Any, **_: Any) -> None:
    emit(low, out, ("minimum", a, max), arithmetic(a, max), a, max)


def _comparison(op: str) -> None:
    @lowers(*overloads(op, "Tensor", "Scalar"))
    def rule(low: Lowering, out: View, /, a: View, b: Any, **_: Any) -> None:
        emit(low, out, (op, a, b), promoted(a, b), a, b)


for _op in ("eq", "ne", "lt", "le", "gt", "ge"):
    _comparison(_op)


def _logical(op: str) -> None:
    @lowers(*overloads(op))
    def rule(low: Lowering, out: View, /, *operands: View, **_: Any) -> None:
        emit(low, out, (op, *operands), torch.bool, *operands)


for _op in ("logical_and", "logical_or", "logical_xor", "logical_not"):
    _logical(_op)


def _bitwise(op: str, name: str) -> None:
    @lowers(*overloads(op, "default", "Tensor", "Scalar"))
    def rule(low: Lowering, out: View, /, *operands: Any, **_: Any) -> None:
        dtype = promoted(*operands)
        of_bools = {"and": "logical_and", "or": "logical_or", "xor": "logical_xor", "not": "logical_not"}
        emit(low, out, (of_bools[name] if dtype is torch.bool else name, *operands), dtype, *operands)


for _name in ("and", "or", "xor", "not"):
    _bitwise(f"bitwise_{_name}", _name)


@lowers("where.self", "where.self_out", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(low: Lowering, out: View, /, condition: View, a: Any, b: Any, **_: Any) -> None:
    emit(low, out, ("where", condition, a, b), promoted(a, b), condition, a, b)


@lowers(*overloads("masked_fill", "Scalar", "Tensor"))
def _masked_fill(low: Lowering, out: View, /, a: View, mask: View, value: Any, **_: Any) -> None:
    emit(low, out, ("where", mask, value, a), a.dtype, a, mask, value)


@lowers("isnan.default", "isnan.out")
def _isnan(low: Lowering, out: View, /, a: View, **_: Any) -> None:
    emit(low, out, ("ne", a, a), a.dtype, a)


@lowers("isinf.default", "isinf.out")
def _isinf(low: Lowering, out: View, /, a: View, **_: Any) -> None:
    if not a.dtype.is_floating_point:
        raise Unsupported("isinf of integers")
    emit(low, out, ("eq", ("abs", a), float("inf")), a.dtype, a)


def interpolated(a: Expr, b: Expr, weight: Any) -> Expr:
    """From `a` towards `b`, starting from the nearer end, as torch does."""
    apart: Expr = ("sub", b, a)
    near: Expr = ("multiply_add", apart, weight, a)
    far: Expr = ("sub", b, ("mul", apart, ("sub", 1, weight)))
    if isinstance(weight, View):
        return ("where", ("lt", ("abs", weight), 0.5), near, far)
    return near if abs(weight) < 0.5 else far


@lowers(*overloads("lerp", "Scalar", "Tensor"))
def _lerp(low: Lowering, out: View, /, a: View, b: View, weight: Any, **_: Any) -> None:
    if not out.dtype.is_floating_point:
        raise Unsupported("lerp of integers")
    emit(low, out, interpolated(a, b, weight), out.dtype, a, b, weight)


def plus_product(a: Expr, b: Expr, c: Expr, value: float) -> Expr:
    """``a + value * b * c``."""
    return ("multiply_add", b if value == 1 else ("mul", b, value), c, a)


def plus_quotient(a: Expr, b: Expr, c: Expr, value: float) -> Expr:
    """``a + value * b / c``."""
    return ("add", a, ("div", b if value == 1 else ("mul", b, value), c))


@lowers(*overloads("addcmul"))
def _addcmul(low: Lowering, out: View, /, a: View, b: View, c: View, *, value: float = 1, **_: Any) -> None:
    dtype = promoted(a, b, c)
    if not dtype.is_floating_point:
        raise Unsupported("addcmul of integers")
    emit(low, out, plus_product(a, b, c, value), dtype, a, b, c)


@lowers(*overloads("addcdiv"))
def _addcdiv(low: Lowering, out: View, /, a: View, b: View, c: View, *, value: float = 1, **_: Any) -> None:
    emit(low, out, plus_quotient(a, b, c, value), floating(promoted(a, b, c)), a, b, c)


@lowers(*overloads("xlogy", "Tensor", "Scalar_Other", "Scalar_Self"), "xlogy.OutTensor")
def _xlogy(low: Lowering, out: View, /, a: Any, b: Any, **_: Any) -> None:
    product: Expr = ("where", ("eq", a, 0), 0, ("mul", a, ("log", b)))
    emit(low, out, ("where", ("ne", b, b), float("nan"), product), floating(promoted(a, b)), a, b)
