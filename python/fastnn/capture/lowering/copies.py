"""Memory that is filled, and copies from one type to another."""

from __future__ import annotations

from typing import Any

import torch

from fastnn.capture.ir import Expr, View
from fastnn.capture.lowering.table import Lowering, lowers
from fastnn.capture.lowering.types import check

_BYTES = frozenset([torch.uint8])


def _fill(low: Lowering, out: View, value: Expr) -> None:
    check(out, value)
    low.elementwise(out, value)


@lowers("zeros_like.default", "zeros.default", "new_zeros.default", "zero_.default", "zero.default")
def _zeros(low: Lowering, out: View, /, *_: Any, **__: Any) -> None:
    _fill(low, out, 0)


@lowers("ones_like.default", "ones.default", "new_ones.default")
def _ones(low: Lowering, out: View, /, *_: Any, **__: Any) -> None:
    _fill(low, out, 1)


@lowers("full.default", "full_like.default", "fill.Scalar", "fill_.Scalar", "fill.Tensor", "fill_.Tensor")
def _full(low: Lowering, out: View, /, _: Any, value: Any, **__: Any) -> None:
    _fill(low, out, value)


@lowers("new_full.default")
def _new_full(low: Lowering, out: View, /, _: Any, __: Any, value: Any, **___: Any) -> None:
    _fill(low, out, value)


@lowers("scalar_tensor.default")
def _scalar_tensor(low: Lowering, out: View, /, value: Any, **_: Any) -> None:
    _fill(low, out, value)


@lowers("copy_.default", "copy.default")
def _copy(low: Lowering, out: View, /, _: View, source: View, non_blocking: bool = False) -> None:
    check(out, source, converted_from=_BYTES)
    low.elementwise(out, source)


@lowers("_to_copy.default", "clone.default")
def _clone(low: Lowering, out: View, /, source: View, **_: Any) -> None:
    check(out, source, converted_from=_BYTES)
    low.elementwise(out, source)
