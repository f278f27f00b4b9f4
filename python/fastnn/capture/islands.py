"""Calls to torch and Python inside a program, on tensors that alias its memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastnn.capture.ir import Island, OptimizerStep, View
from fastnn.capture.tape import parameters_of, replace


@dataclass
class Place:
    """Where the tensor of a View is found in a call.

    Attributes:
        fixed: the tensor, if it is the same in each call.
        find: otherwise a function that returns it, from the tensors among the arguments and those that are
            returned.
    """

    fixed: Tensor | None = None
    find: Callable[[list[Tensor], list[Tensor]], Tensor] | None = None

    def tensor(self, inputs: list[Tensor], outputs: list[Tensor]) -> Tensor:
        """The tensor of the present call."""
        if self.fixed is not None:
            return self.fixed
        assert self.find is not None  # one of the two is given
        return self.find(inputs, outputs)


def view_of(tensor: Tensor, view: View, before: int = 0) -> Tensor:
    """The View in the memory of `tensor`, which started `before` elements into its storage when recorded."""
    tensor = tensor.detach()
    moved = int(tensor.storage_offset()) - before
    if tensor.dtype is view.dtype:
        return torch.as_strided(tensor, view.shape, view.strides, view.offset + moved)
    if moved * tensor.itemsize % view.dtype.itemsize:
        raise RuntimeError(f"a view of {view.dtype} would begin within an element")
    return in_bytes(tensor, view, moved * tensor.itemsize)


def in_bytes(memory: Tensor, view: View, offset: int) -> Tensor:
    """The View in the storage of `memory`, where its own storage begins at byte `offset`."""
    start = offset // view.dtype.itemsize + view.offset
    empty = torch.empty(0, dtype=view.dtype, device="cpu")
    return empty.set_(memory.untyped_storage(), start, view.shape, view.strides)


def call_island(island: Island, place: Callable[[View], Place]) -> tuple[Callable[..., Any], bool]:
    """What runs the op, and whether it takes the arguments' tensors and the outputs."""
    args = tuple(replace(a, View, place) for a in island.args)
    kwargs = {key: replace(a, View, place) for key, a in island.kwargs.items()}
    targets = [None if view is None else place(view) for view in island.results]
    op = island.op
    if all(place(view).fixed is not None for view in (*island.ins, *island.outs)) and not any(targets):
        fixed_args = tuple(replace(a, Place, lambda p: p.fixed) for a in args)
        fixed = {key: replace(a, Place, lambda p: p.fixed) for key, a in kwargs.items()}
        return functools.partial(op, *fixed_args, **fixed), False

    def run(inputs: list[Tensor], outputs: list[Tensor]) -> None:
        def tensor(p: Place) -> Tensor:
            return p.tensor(inputs, outputs)

        found = op(
            *(replace(a, Place, tensor) for a in args),
            **{key: replace(a, Place, tensor) for key, a in kwargs.items()},
        )
        results = found if isinstance(found, (tuple, list)) else (found,)
        for result, target in zip(results, targets, strict=False):
            if target is not None:
                tensor(target).copy_(result)

    return run, True


def call_optimizer(step: OptimizerStep, place: Callable[[View], Place]) -> Callable[..., None]:
    """A function that takes the optimizer's step in Python, with the program's gradients."""
    gradients = [(param, place(view)) for param, view in step.gradients]
    optimizer = step.optimizer

    def run(inputs: list[Tensor], outputs: list[Tensor]) -> None:
        params = parameters_of(optimizer)
        before = [param.grad for param in params]
        present = [(param, gradient.tensor(inputs, outputs)) for param, gradient in gradients]
        try:
            for param in params:
                param.grad = None
            for param, gradient in present:
                param.grad = gradient
            optimizer.step()
        finally:
            for param, grad in zip(params, before, strict=True):
                param.grad = grad

    return run
