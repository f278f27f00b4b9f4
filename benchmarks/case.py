"""What a benchmark case is: a name, a shape, counted work, and the callables to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OURS = "fastnn"

Call = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    """Callables that do the same work on the same values, by name; ``"fastnn"`` is one of them.

    A callable returns the tensor or tensors by which its answer is checked. Where it carries state from call
    to call, `checked_calls` of them are compared one by one.
    """

    calls: Mapping[str, Call]
    tolerance: float
    checked_calls: int = 1


@dataclass(frozen=True)
class Case:
    """One line of the benchmark.

    `flops` or `bytes` is the compulsory work of one call: what any implementation must do, by the formula of
    the op, whatever ours or a peer really does.
    """

    op: str
    shape: str
    build: Callable[[], Workload]
    dtype: torch.dtype = torch.float32
    flops: int = 0
    bytes: int = 0
    note: str = ""
    quick: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if (self.flops > 0) == (self.bytes > 0):
            raise ValueError(f"{self.op} {self.shape}: give either flops or bytes")

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def label(self) -> str:
        return f"{self.op} {self.shape} {self.dtype_name}"


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small integers: sums of their products are exact, so that no rounding decides where a ReLU passes.

    With values drawn at random two correct products may differ in the last place, give one pre-activation
    opposite signs and so disagree in a whole row of the gradient.
    """
    return torch.randint(-2, 3, shape).to(dtype)
