"""The micro-ops of csrc/program/elementwise/table.h by name, and what expressions may be made of."""

from __future__ import annotations

import torch

# In the order of kMicroOps.
_ROWS = (
    ("move", "add", "sub", "mul", "div", "multiply_add"),
    ("neg", "abs", "sgn", "reciprocal", "sqrt", "rsqrt"),
    ("exp", "expm1", "log", "log1p", "log2", "log10"),
    ("sin", "cos", "tan", "atan", "erf"),
    ("floor", "ceil", "round", "trunc"),
    ("pow", "fmod", "remainder", "atan2", "minimum", "maximum"),
    ("relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu"),
    ("gate", "sigmoid_backward", "tanh_backward", "gelu_backward", "gelu_tanh_backward", "silu_backward"),
    ("eq", "ne", "lt", "le", "where", "and", "or", "xor"),
    ("to_float32", "to_float64", "to_int64", "to_bool"),
)
NUMBER = {name: number for number, name in enumerate(name for row in _ROWS for name in row)}

# Types of values in the order of kMicroOps; uint8 is only a source of conversions.
TYPES = {torch.float32: 0, torch.float64: 1, torch.int64: 2, torch.bool: 3, torch.uint8: 4}
CONVERSIONS = {
    torch.float32: "to_float32",
    torch.float64: "to_float64",
    torch.int64: "to_int64",
    torch.bool: "to_bool",
}

COMPARISONS = frozenset(["eq", "ne", "lt", "le"])
SWAPPED = {"gt": "lt", "ge": "le"}
LOGICAL = {"logical_and": "and", "logical_or": "or", "logical_xor": "xor"}
_ANY_TYPE = frozenset(["move", "where"])
_OF_INTEGERS = frozenset(["add", "sub", "mul", "neg", "abs", "sgn", "minimum", "maximum", "relu"])
_OF_BITS = frozenset(["and", "or", "xor"])

# Cost of a micro-op per value, if more than that of reading and writing it.
_COSTS = {
    **dict.fromkeys(["div", "reciprocal", "sqrt", "rsqrt"], 2),
    **dict.fromkeys(["exp", "expm1", "sigmoid", "silu", "sigmoid_backward"], 5),
    **dict.fromkeys(["log", "log1p", "tanh", "gelu_tanh"], 8),
    **dict.fromkeys(["gelu", "gelu_backward", "gelu_tanh_backward", "silu_backward"], 12),
    **dict.fromkeys(["log2", "log10", "sin", "cos", "tan", "atan", "erf"], 60),
    **dict.fromkeys(["pow", "fmod", "remainder", "atan2"], 60),
}


def cost(name: str) -> int:
    """The cost of a micro-op per value, in additions."""
    return _COSTS.get(name, 1)


def has_type(name: str, dtype: torch.dtype) -> bool:
    """Whether a micro-op that is neither a comparison nor a conversion computes in `dtype`."""
    if dtype.is_floating_point:
        return name in NUMBER and name not in _OF_BITS
    if dtype is torch.int64:
        return name in _ANY_TYPE or name in _OF_INTEGERS or name in _OF_BITS
    return dtype is torch.bool and (name in _ANY_TYPE or name in _OF_BITS)
