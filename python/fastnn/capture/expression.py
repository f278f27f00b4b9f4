"""Expressions over elements as a list of values, each computed once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fastnn.capture.ir import Elementwise, Expr, View
from fastnn.capture.micro_ops import COMPARISONS, CONVERSIONS, LOGICAL, SWAPPED, has_type
from fastnn.capture.overlap import canonical

# Expressions are made of Views, which broadcast, of numbers, and of (name, arguments...). A name not listed
# here is one of micro_ops.py: its arguments are converted to the type that the expression is computed in, and
# its result has that type.
#   eq ne lt le gt ge                the same for arguments, the result is a bool
#   logical_and logical_or logical_xor logical_not    arguments are converted to bool, so is the result
#   where(condition, a, b)           only the condition is converted to bool
#   cast(dtype, expression)          the expression is computed in `dtype`
#   square(a); not(a) of integers


class Value(NamedTuple):
    """A value in memory, a constant, or a micro-op with its operands."""

    name: str
    args: tuple[int, ...]
    dtype: torch.dtype
    source: View | str = ""  # for "memory" its canonical view, for "constant" its number, in hexadecimal


@dataclass
class Store:
    """The value stored to a view, and how many micro-ops preceded it."""

    view: View
    value: int
    after: int


@dataclass
class Total:
    """The sum over a value, divided by a number."""

    view: View
    value: int
    divisor: float


@dataclass
class Values:
    """The values of several nodes on elements of one shape, in program order."""

    values: list[Value] = field(default_factory=list)
    ops: list[int] = field(default_factory=list)  # which of them are micro-ops
    stores: dict[View, Store] = field(default_factory=dict)
    totals: list[Total] = field(default_factory=list)
    _known: dict[Value, int] = field(default_factory=dict)
    _held: dict[View, int] = field(default_factory=dict)  # the values of views

    def add(self, node: Elementwise) -> None:
        """``out = expr``."""
        shape = node.out.shape
        value = self._evaluate(node.expr, shape, node.dtype, node.out.dtype)
        view = canonical(node.out, shape)
        self._held[view] = value
        self.stores.pop(view, None)  # the overwritten value is never seen
        self.stores[view] = Store(view, value, len(self.ops))

    def add_total(self, out: View, view: View, divisor: float) -> None:
        """``out = sum(view) / divisor``."""
        value = self._read(canonical(view, view.shape))
        self.totals.append(Total(canonical(out, out.shape), value, divisor))

    def _new(self, value: Value) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def _value(self, value: Value) -> int:
        found = self._known.get(value)
        if found is None:
            found = self._known[value] = self._new(value)
            if value.name not in ("memory", "constant"):
                self.ops.append(found)
        return found

    def _read(self, view: View) -> int:
        found = self._held.get(view)
        if found is None:
            # Always a new value: the memory may have been overwritten.
            found = self._held[view] = self._new(Value("memory", (), view.dtype, view))
        return found

    def _converted(self, index: int, dtype: torch.dtype) -> int:
        if self.values[index].dtype is dtype:
            return index
        return self._value(Value(CONVERSIONS[dtype], (index,), dtype))

    def _evaluate(self, expr: Expr, shape: tuple[int, ...], context: torch.dtype, dtype: torch.dtype) -> int:
        """The value of an expression computed in type `context`, converted to `dtype`."""
        if isinstance(expr, View):
            return self._converted(self._read(canonical(expr, shape)), dtype)
        if not isinstance(expr, tuple):
            if not (context.is_floating_point or dtype.is_floating_point or float(expr).is_integer()):
                raise ValueError(f"{expr} in an expression of integers")
            return self._value(Value("constant", (), dtype, float(expr).hex()))
        name, *args = expr
        if name == "cast":
            return self._converted(self._evaluate(args[1], shape, args[0], args[0]), dtype)
        if name == "square":
            operand = self._evaluate(args[0], shape, context, context)
            return self._converted(self._value(Value("mul", (operand, operand), context)), dtype)
        if name == "not":
            name, args = "xor", [args[0], -1]
        if name in SWAPPED:
            name, args = SWAPPED[name], args[::-1]
        arguments, result = context, context
        if name in COMPARISONS:
            result = torch.bool
        elif name in LOGICAL:
            name, arguments, result = LOGICAL[name], torch.bool, torch.bool
        elif name == "logical_not":
            name, args, arguments, result = "xor", [args[0], True], torch.bool, torch.bool
        elif not has_type(name, context):
            raise ValueError(f"{name} in an expression of {context}")
        types = [arguments] * len(args)
        if name == "where":
            types[0] = torch.bool
        operands = tuple(
            self._evaluate(arg, shape, context, kind) for arg, kind in zip(args, types, strict=True)
        )
        return self._converted(self._value(Value(name, operands, result)), dtype)
