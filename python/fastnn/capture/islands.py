"""Calls of torch and of Python inside a program, on tensors that alias its memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastnn.capture.ir import Island, OptimizerStep, View
from fastnn.capture.recorder import replace

# Gives the tensor of a View, from the tensors among the arguments and those that are returned.
Resolve = Callable[[list[Tensor], list[Tensor]], Tensor]


def view_of(tensor: Tensor, view: View, offset: int | None = None) -> Tensor:
    """The View in the memory of `tensor`, where its storage has `offset` elements before it."""
    return torch.as_strided(
        tensor.detach(), view.shape, view.strides, view.offset if offset is None else offset
    )


def in_bytes(memory: Tensor, view: View, offset: int) -> Tensor:
    """The View in `memory`, an array of bytes, whose storage begins at byte `offset` there."""
    start = offset // view.dtype.itemsize + view.offset
    return torch.empty(0, dtype=view.dtype).set_(memory.untyped_storage(), start, view.shape, view.strides)


def call_island(island: Island, resolve: Callable[[View], Resolve]) -> Callable[..., None]:
    """A function of (arguments' tensors, outputs) that runs the op."""
    args = tuple(replace(a, View, resolve) for a in island.args)
    kwargs = {key: replace(a, View, resolve) for key, a in island.kwargs.items()}
    targets = [None if view is None else resolve(view) for view in island.results]
    op = island.op

    def run(inputs: list[Tensor], outputs: list[Tensor]) -> None:
        def tensor(resolver: Resolve) -> Tensor:
            return resolver(inputs, outputs)

        with torch.no_grad():
            found = op(
                *(replace(a, _FUNCTION, tensor) for a in args),
                **{key: replace(a, _FUNCTION, tensor) for key, a in kwargs.items()},
            )
            results = found if isinstance(found, (tuple, list)) else (found,)
            for result, target in zip(results, targets, strict=False):
                if target is not None:
                    tensor(target).copy_(result)

    return run


_FUNCTION = type(lambda: None)


def call_optimizer(step: OptimizerStep, resolve: Callable[[View], Resolve]) -> Callable[..., None]:
    """A function that takes the optimizer's step in Python, with the program's gradients."""
    gradients = [(param, resolve(view)) for param, view in step.gradients]
    optimizer = step.optimizer

    def run(inputs: list[Tensor], outputs: list[Tensor]) -> None:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        before = [param.grad for param in params]
        present = [(param, gradient(inputs, outputs)) for param, gradient in gradients]
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
