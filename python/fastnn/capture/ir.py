"""What a recorded step is made of: memory, views of it, and what is done with them, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch


@dataclass(eq=False)
class Storage:
    """A piece of memory.

    ``tensor`` is None for memory that the program plans itself; else the memory is the user's (a parameter, a
    buffer, an argument, a result) or a constant.
    """

    bytes: int
    tensor: torch.Tensor | None = None


class View(NamedTuple):
    """A tensor; ``offset`` and ``strides`` count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count

    @property
    def is_contiguous(self) -> bool:
        """As in torch."""
        expected = 1
        for n, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n != 1 and stride != expected:
                return self.numel == 0
            expected *= n
        return True

    @property
    def is_dense(self) -> bool:
        """Whether the elements fill one block of memory, in any order of the dimensions."""
        expected = 1
        for stride, n in sorted(zip(self.strides, self.shape, strict=True)):
            if n != 1 and stride != expected:
                return self.numel == 0
            expected *= n
        return True

    @property
    def reach(self) -> tuple[int, int]:
        """The first byte in its storage, and the one after the last; the view must not be empty."""
        last = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return self.offset * self.dtype.itemsize, (self.offset + last + 1) * self.dtype.itemsize

    def spans(self, other: View) -> bool:
        """Whether `other`, of the same storage, is between the first and the last byte of this one."""
        (first, end), (begin, until) = self.reach, other.reach
        return first <= begin and until <= end

    def with_shape(self, shape: tuple[int, ...], strides: tuple[int, ...], offset: int | None = None) -> View:
        """Another view of the same memory."""
        return View(self.storage, self.offset if offset is None else offset, shape, strides, self.dtype)

    def expand(self, shape: tuple[int, ...]) -> View:
        """Broadcast to `shape`, as torch does."""
        missing = len(shape) - len(self.shape)
        own = (1,) * missing + self.shape
        strides = (0,) * missing + self.strides
        return self.with_shape(shape, tuple(0 if n == 1 else s for n, s in zip(own, strides, strict=True)))


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a contiguous tensor."""
    strides, expected = [], 1
    for n in reversed(shape):
        strides.append(expected)
        expected *= max(n, 1)
    return tuple(reversed(strides))


@dataclass(eq=False)
class Instruction:
    """A native instruction; csrc/program/ has its contract under its name."""

    name: str
    outs: list[View]
    ins: list[View]
    numbers: list[float] = field(default_factory=list)
    code: list[int] = field(default_factory=list)


# On elements: a View that broadcasts to the result's shape, a number, or (name, arguments...).
Expr: TypeAlias = "View | float | int | bool | tuple[Any, ...]"


@dataclass(eq=False)
class Elementwise:
    """``out[i] = expr[i]``, computed in ``dtype`` and converted to the dtype of ``out``.

    ``out`` may be one of the views in ``expr``, or overlap none of them. Neighbours are fused into one
    instruction.
    """

    out: View
    expr: Expr
    dtype: torch.dtype

    @property
    def outs(self) -> list[View]:
        """What is written."""
        return [self.out]

    @property
    def ins(self) -> list[View]:
        """What is read."""
        found: list[View] = []

        def visit(expr: Expr) -> None:
            if isinstance(expr, View):
                found.append(expr)
            elif isinstance(expr, tuple):
                for part in expr[1:]:
                    visit(part)

        visit(self.expr)
        return found


@dataclass(eq=False)
class Island:
    """An op called from Python, usually torch's, on tensors that alias the program's memory.

    ``args`` and ``kwargs`` are the op's, with Views where tensors were. What it returns is copied to
    ``results``, where None stands for those that are arguments, written in place. ``writes`` are the
    arguments that it writes. ``native``: the op is a kernel of fastnn called from Python.
    """

    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[View | None]
    reads: list[View]
    writes: list[View]
    random: bool
    reason: str
    native: bool = False

    @property
    def outs(self) -> list[View]:
        """What is written."""
        return self.writes + [view for view in self.results if view is not None]

    @property
    def ins(self) -> list[View]:
        """What is read."""
        return self.reads


@dataclass(eq=False)
class OptimizerStep:
    """A step of an optimizer, which reads its options and state when it runs.

    ``gradients`` pairs each parameter that has one with its gradient.
    """

    optimizer: torch.optim.Optimizer
    gradients: list[tuple[torch.Tensor, View]]
    parameters: list[View]

    @property
    def outs(self) -> list[View]:
        """What is written."""
        return self.parameters

    @property
    def ins(self) -> list[View]:
        """What is read."""
        return [*self.parameters, *(view for _, view in self.gradients)]


Node: TypeAlias = "Instruction | Elementwise | Island | OptimizerStep"
