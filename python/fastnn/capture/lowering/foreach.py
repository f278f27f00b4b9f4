"""Ops on lists of tensors, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import Elementwise, Expr, View
from fastnn.capture.lowering import elementwise as element
from fastnn.capture.lowering.table import Lowering, lowers
from fastnn.capture.lowering.types import check, floating, promoted
from fastnn.capture.overlap import extent, overlap

_Make = Callable[..., Expr]


def _each(value: Any, at: int) -> Any:
    return value[at] if isinstance(value, list) else value


def _emit(
    low: Lowering,
    outs: list[View],
    expressions: list[tuple[Expr, torch.dtype, list[Any]]],
) -> None:
    """All or none: refusals of any tensor are found before the first is emitted."""
    for at, (out, (_, _, operands)) in enumerate(zip(outs, expressions, strict=True)):
        check(out, *operands)
        # torch reads every tensor of a list before it writes any.
        for _, _, others in expressions[at + 1 :]:
            if any(isinstance(x, View) and overlap(extent(x), extent(out)) for x in others):
                raise Unsupported("a list of tensors that overlap")
    for out, (expr, dtype, _) in zip(outs, expressions, strict=True):
        low.nodes.append(Elementwise(out, expr, dtype))


def _targets(out: Any, tensors: list[View]) -> list[View]:
    return tensors if out is None or out == [] else out


def _foreach(op: str, *kinds: str) -> list[str]:
    return [f"_foreach_{op}{place}.{kind}" for kind in kinds or ("default",) for place in ("", "_")]


def _of_one(op: str, make: _Make, dtype_of: Callable[[Any], torch.dtype]) -> None:
    @lowers(*_foreach(op))
    def rule(low: Lowering, out: Any, /, tensors: list[View]) -> None:
        _emit(low, _targets(out, tensors), [(make(x), dtype_of(x), [x]) for x in tensors])


def _float_of(x: View) -> torch.dtype:
    return floating(x.dtype)


def _named(name: str) -> _Make:
    return lambda *operands: (name, *operands)


for _op in ("sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "reciprocal", "sigmoid", "tanh"):
    _of_one(_op, _named(_op), _float_of)
for _op, _name in {"neg": "neg", "abs": "abs", "sign": "sgn"}.items():
    _of_one(_op, _named(_name), element.arithmetic)


@lowers("_foreach_zero_.default")
def _zero(low: Lowering, out: Any, /, tensors: list[View]) -> None:
    _emit(low, tensors, [(0, x.dtype, []) for x in tensors])


@lowers("_foreach_copy_.default")
def _copy(low: Lowering, out: Any, /, tensors: list[View], sources: list[View], _: bool = False) -> None:
    _emit(low, tensors, [(y, x.dtype, [y]) for x, y in zip(tensors, sources, strict=True)])


def _of_two(op: str, make: _Make, dtype_of: Callable[..., torch.dtype], *kinds: str) -> None:
    @lowers(*_foreach(op, *kinds))
    def rule(low: Lowering, out: Any, /, tensors: list[View], others: Any, alpha: float = 1) -> None:
        expressions: list[tuple[Expr, torch.dtype, list[Any]]] = []
        for at, x in enumerate(tensors):
            y = _each(others, at)
            dtype = dtype_of(x, y)
            expressions.append((make(x, y, alpha, dtype), dtype, [x, y]))
        _emit(low, _targets(out, tensors), expressions)


def _plus(x: Expr, y: Expr, alpha: float, dtype: torch.dtype) -> Expr:
    return element.plus(x, y, alpha, dtype)


def _minus(x: Expr, y: Expr, alpha: float, dtype: torch.dtype) -> Expr:
    return element.plus(x, y, -alpha, dtype)


def _float_of_two(x: Any, y: Any) -> torch.dtype:
    return floating(promoted(x, y))


def _binary(name: str) -> _Make:
    return lambda x, y, alpha, dtype: (name, x, y)


_of_two("add", _plus, element.arithmetic, "Scalar", "List", "ScalarList", "Tensor")
_of_two("sub", _minus, element.arithmetic, "Scalar", "List", "ScalarList")
_of_two("mul", _binary("mul"), element.arithmetic, "Scalar", "List", "ScalarList", "Tensor")
_of_two("div", _binary("div"), _float_of_two, "Scalar", "List", "ScalarList", "Tensor")
for _op, _name in {
    "maximum": "maximum",
    "minimum": "minimum",
    "clamp_min": "maximum",
    "clamp_max": "minimum",
}.items():
    _of_two(_op, _binary(_name), element.arithmetic, "Scalar", "List", "ScalarList")


def _fused(op: str, make: _Make) -> None:
    @lowers(*_foreach(op, "Scalar", "ScalarList"))
    def rule(
        low: Lowering, out: Any, /, tensors: list[View], a: list[View], b: list[View], values: Any = 1
    ) -> None:
        expressions: list[tuple[Expr, torch.dtype, list[Any]]] = []
        for at, (x, y, z) in enumerate(zip(tensors, a, b, strict=True)):
            dtype = promoted(x, y, z)
            if not dtype.is_floating_point:
                raise Unsupported(f"{op} of integers")
            expressions.append((make(x, y, z, _each(values, at)), dtype, [x, y, z]))
        _emit(low, _targets(out, tensors), expressions)


_fused("addcmul", element.plus_product)
_fused("addcdiv", element.plus_quotient)


@lowers(*_foreach("lerp", "List", "Scalar", "ScalarList"))
def _lerp(low: Lowering, out: Any, /, tensors: list[View], ends: list[View], weights: Any) -> None:
    expressions: list[tuple[Expr, torch.dtype, list[Any]]] = []
    for at, (x, y) in enumerate(zip(tensors, ends, strict=True)):
        weight = _each(weights, at)
        if not x.dtype.is_floating_point:
            raise Unsupported("lerp of integers")
        expressions.append((element.interpolated(x, y, weight), x.dtype, [x, y, weight]))
    _emit(low, _targets(out, tensors), expressions)
