"""What a recording found: ops with their memory, and steps of optimizers, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastnn._torch_internals import OpOverload, arguments_of
from fastnn.capture.ir import Storage, View

# Arguments that ops write although their signature does not say so, by name.
_UNDECLARED_WRITES = {"native_batch_norm.default": ("running_mean", "running_var")}
_DEPENDS_ON_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


@dataclass(frozen=True)
class Schema:
    """What an op's signature says about it."""

    name: str  # such as "add.Tensor"
    namespace: str
    writes: tuple[tuple[int, str], ...]  # the arguments that are written, by position and name
    random: bool  # or called for its side effects, as an assertion is
    depends_on_values: bool


def name_of(op: Any) -> str:
    """A name such as "add.Tensor"."""
    return str(op).partition(".")[2] if isinstance(op, OpOverload) else str(op.__name__)


@cache
def schema_of(op: Any) -> Schema:
    """What the signature of an op says."""
    namespace = str(op).partition(".")[0]
    name = name_of(op)
    undeclared = _UNDECLARED_WRITES.get(name, ())
    writes = tuple(
        (i, argument.name)
        for i, argument in enumerate(arguments_of(op))
        if (argument.alias_info is not None and argument.alias_info.is_write) or argument.name in undeclared
    )
    random = torch.Tag.nondeterministic_seeded in op.tags or name.startswith("_assert_async.")
    return Schema(name, namespace, writes, random, bool(_DEPENDS_ON_VALUES.intersection(op.tags)))


class Op(NamedTuple):
    """One op that ran, with Views where tensors were."""

    op: Callable[..., Any]
    schema: Schema
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: Any  # what it returned, with Views
    fresh: tuple[Storage, ...]  # newly allocated memory that it returned


class Step(NamedTuple):
    """One step of an optimizer."""

    optimizer: Optimizer
    gradients: list[tuple[Tensor, View]]
    parameters: list[View]


class Tape:
    """What a recording found.

    Attributes:
        entries: the ops and optimizer steps, in order.
        inputs: the memory of each tensor among the arguments, and its view.
        externals: memory from before the recording, with the tensor through which it was reached.
        fresh: memory that the function made.
        modules: the modules that were called.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self.entries: list[Op | Step] = []
        self.inputs: list[View] = []
        self.externals: list[Storage] = []
        self.fresh: list[Storage] = []
        self.modules: list[torch.nn.Module] = []


def tensors_in(x: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for part in x:
            yield from tensors_in(part)
    elif isinstance(x, dict):
        yield from tensors_in(list(x.values()))


def views_in(x: Any) -> Iterator[View]:
    """The Views in nested tuples, lists and dicts."""
    if isinstance(x, View):
        yield x
    elif isinstance(x, (tuple, list)):
        for part in x:
            yield from views_in(part)
    elif isinstance(x, dict):
        yield from views_in(list(x.values()))


def replace(x: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """`x` with each `kind` in it replaced, in nested tuples, lists and dicts, whose types are kept."""
    if isinstance(x, kind):
        return by(x)
    if isinstance(x, (list, tuple)):
        parts = [replace(part, kind, by) for part in x]
        return type(x)(*parts) if hasattr(x, "_make") else type(x)(parts)
    if isinstance(x, dict):
        return type(x)((key, replace(part, kind, by)) for key, part in x.items())
    return x


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All parameters of an optimizer, group by group."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def as_view(tensor: Tensor, storage: Storage) -> View:
    """The View of a tensor whose memory is known."""
    return View(
        storage, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype
    )
