"""The table from torch's ops to instructions, and what its rules are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastnn.capture.ir import (
    Elementwise,
    Expr,
    Instruction,
    Node,
    Storage,
    View,
    contiguous_strides,
)

# A rule is given the results of torch's op (one View, or a list of Views and None if there were several) and
# its arguments, with a View for each tensor, and calls `low` to emit what computes the results. For an
# in-place op the result is the argument's own view. What a rule does not cover it refuses with `Unsupported`,
# and the op becomes an island.
Rule = Callable[..., None]

RULES: dict[str, Rule] = {}

# For instructions that check indices (their last result is the flag of csrc/program/instruction.h), the error
# that torch raises, given the instruction and the index.
ERRORS: dict[str, Callable[[Instruction, int], Exception]] = {}


def lowers(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for torch's ops, by names like ``add.Tensor``: ``rule(low, out, *args, **kwargs)``."""

    def register(rule: Rule) -> Rule:
        for name in names:
            RULES[name] = rule
        return rule

    return register


class Lowering:
    """Collects the instructions that rules emit."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def emit(
        self,
        name: str,
        outs: Sequence[View],
        ins: Sequence[View],
        numbers: Sequence[float] = (),
        code: Sequence[int] = (),
    ) -> None:
        """Append a native instruction."""
        self.nodes.append(
            Instruction(name, list(outs), list(ins), [float(n) for n in numbers], [int(c) for c in code])
        )

    def elementwise(self, out: View, expr: Expr, dtype: torch.dtype | None = None) -> None:
        """Append ``out = expr``, computed in `dtype`, by default that of `out`."""
        self.nodes.append(Elementwise(out, expr, dtype or out.dtype))

    def temporary(self, shape: Sequence[int], dtype: torch.dtype) -> View:
        """Contiguous memory for an intermediate value that is no result of torch's op."""
        dims = tuple(shape)
        view = View(Storage(0), 0, dims, contiguous_strides(dims), dtype)
        view.storage.bytes = view.numel * dtype.itemsize
        return view


def lower(low: Lowering, name: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Append what computes an op; returns whether it has a rule. Raises the rule's `Unsupported`."""
    rule = RULES.get(name)
    if rule is None:
        return False
    rule(low, out, *args, **kwargs)
    return True
