"""The type in which torch computes an op, and checks of the arguments of rules."""

from __future__ import annotations

from typing import Any

import torch

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import View
from fastnn.capture.overlap import canonical, extent, overlap

COMPUTED = frozenset([torch.float32, torch.float64, torch.int64, torch.bool])
_MOST_DIMENSIONS = 8  # TensorView::kMaxDims
_LARGEST_EXACT = 2**53


def promoted(*args: Any) -> torch.dtype:
    """torch.result_type of Views and numbers."""
    whole: torch.dtype | None = None
    zero: torch.dtype | None = None
    number: torch.dtype | None = None
    for arg in args:
        if isinstance(arg, View):
            if arg.shape:
                whole = arg.dtype if whole is None else torch.promote_types(whole, arg.dtype)
            else:
                zero = arg.dtype if zero is None else torch.promote_types(zero, arg.dtype)
        else:
            kind = _number_dtype(arg)
            number = kind if number is None else torch.promote_types(number, kind)
    result = _combined(whole, _combined(zero, number))
    if result is None:
        raise Unsupported("no operands")
    return result


def _number_dtype(value: Any) -> torch.dtype:
    if isinstance(value, bool):
        return torch.bool
    if isinstance(value, int):
        return torch.int64
    if isinstance(value, float):
        return torch.get_default_dtype()
    raise Unsupported(f"a {type(value).__name__} among numbers")


def _combined(higher: torch.dtype | None, lower: torch.dtype | None) -> torch.dtype | None:
    """Within a category of types, tensors with dimensions take precedence over those without, and these over
    numbers."""
    if higher is None or lower is None:
        return lower if higher is None else higher
    if higher.is_floating_point or higher.is_complex:
        return higher
    if higher is torch.bool or lower.is_floating_point or lower.is_complex:
        return torch.promote_types(higher, lower)
    return higher


def check(out: View, *args: Any, converted_from: frozenset[torch.dtype] = frozenset()) -> None:
    """Refuse types and memory with which elementwise programs cannot compute `out`."""
    if out.dtype not in COMPUTED:
        raise Unsupported(f"a result of {out.dtype}")
    if len(out.shape) > _MOST_DIMENSIONS:
        raise Unsupported(f"{len(out.shape)} dimensions")
    place = canonical(out, out.shape)
    if any(stride == 0 for stride in place.strides):
        raise Unsupported("a result whose elements share memory")
    own = extent(place)
    for arg in args:
        if isinstance(arg, View):
            if arg.dtype not in COMPUTED and arg.dtype not in converted_from:
                raise Unsupported(f"an operand of {arg.dtype}")
            if arg.storage is out.storage and arg.numel:
                other = canonical(arg, out.shape)
                if other != place and overlap(own, extent(other)):
                    raise Unsupported("an operand that overlaps the result")
        elif isinstance(arg, int) and not isinstance(arg, bool) and abs(arg) > _LARGEST_EXACT:
            raise Unsupported(f"the number {arg}")
        elif arg is not None and not isinstance(arg, (int, float)):
            raise Unsupported(f"a {type(arg).__name__} among operands")


def floating(dtype: torch.dtype) -> torch.dtype:
    """The result type of a function of floating-point results."""
    return dtype if dtype.is_floating_point else torch.get_default_dtype()
