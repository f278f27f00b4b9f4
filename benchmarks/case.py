"""What a benchmark case is: a name, a shape, counted work, and the callables to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

OURS = "fastnn"

Call = Callable[[], Any]


class Foreign(NamedTuple):
    """The work as passed to other libraries: the name of an operation in ``peers/`` and its arguments.

    Tensors among the arguments reach the peer as numpy arrays.
    """

    op: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Workload:
    """Callables that do the same work on the same values, by name; ``"fastnn"`` is one of them.

    A callable returns the tensor or tensors by which its answer is checked. If it carries state from call
    to call, `checked_calls` of them are compared one by one.

    `optional` makes the callables of peers within torch that a run may omit; `foreign` is the same work for
    libraries that run in processes of their own. Peers in `learners` start from different numbers by design,
    so their answers cannot match ours: they return a loss, which must decrease.
    """

    calls: Mapping[str, Call]
    tolerance: float
    checked_calls: int = 1
    optional: Mapping[str, Callable[[], Call]] = field(default_factory=dict)
    foreign: Foreign | None = None
    learners: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Case:
    """One line of the benchmark.

    `flops` or `bytes` is the compulsory work of one call: what any implementation must do, by the formula of
    the op, whatever ours or a peer actually does; with flops, `traffic` is the bytes that must be read
    or written once, for the arithmetic intensity. `group` is the report that the case belongs to; in a sweep
    `at` is the value of the varied quantity. A run on fewer than `least_threads` threads leaves the case out.
    """

    op: str
    shape: str
    build: Callable[[], Workload]
    dtype: torch.dtype = torch.float32
    flops: int = 0
    bytes: int = 0
    note: str = ""
    quick: bool = field(default=False, kw_only=True)
    traffic: int = field(default=0, kw_only=True)
    group: str = field(default="ops", kw_only=True)
    at: int = field(default=0, kw_only=True)
    least_threads: int = field(default=1, kw_only=True)

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
    """Small integers: sums of their products are exact, so that rounding does not decide where a ReLU passes.

    With random values two correct products may differ in the last place, give one pre-activation
    opposite signs and so differ in a whole row of the gradient.
    """
    return torch.randint(-2, 3, shape).to(dtype)
