"""Swap the modules of a model between torch and fastnn, in place."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch

from fastnn import _functional, nn

M = TypeVar("M", bound=torch.nn.Module)

_TO_FASTNN: dict[type, type] = {
    torch.nn.Linear: nn.Linear,
    torch.nn.ReLU: nn.ReLU,
    torch.nn.CrossEntropyLoss: nn.CrossEntropyLoss,
    torch.nn.Sequential: nn.Sequential,
}
_TO_TORCH: dict[type, type] = {ours: theirs for theirs, ours in _TO_FASTNN.items()}
_TO_TORCH[nn.MLP] = torch.nn.Sequential


def convert(model: M) -> M:
    """Turn the torch modules of `model` that have a fastnn counterpart into it, in place.

    These are ``Linear``, ``ReLU``, ``CrossEntropyLoss`` and ``Sequential`` (which then runs each stretch of
    ``Linear`` and activation as one op), the root included. A module keeps its identity and only changes its
    class: parameters, buffers, hooks, optimizers that hold the parameters, sharing between places of the
    model, and the training flag all stay. Left alone are subclasses (so also parametrized, lazy and
    quantised layers), scripted modules, and whatever is inside a module that ``torch.compile`` took.
    Calling it again changes nothing more.

    A module with a ``forward`` of its own, such as ``self.fc2(F.relu(self.fc1(x)))``, gets a subclass of its
    class with the same name, whose call runs each chain of ``Linear`` and activation (relu, tanh, sigmoid,
    gelu, silu as function, method or module) as one op; ``model.forward(x)`` itself stays as written. The
    forward is traced once, with its arguments without default as tensors. Whatever it read on the way
    (attributes, flags, global constants, which module is where) is compared at each call, and where anything
    differs (hooks on the module or an inner layer, other arguments, a replaced layer, a transform too) the
    forward runs as written; calling `convert` again then traces anew.

    It is left as it is where it holds no such chain, and where a trace could miss something: control flow on
    tensors, ``with``, ``super()``, ``isinstance``, ``print``, ``x += y``, attributes written or lists and
    objects read, functions of which nothing is known. Read the reason with
    ``print(fastnn.explain(fastnn.convert, model))``, with ``fastnn.explain(model, x)`` later, or set
    ``FASTNN_LOG=1``. A torch function that is replaced after the trace is not noticed.

    Args:
        model: any module.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is no :class:`torch.nn.Module`.
    """
    _check("convert", model)
    names = {id(module): name for name, module in model.named_modules()}
    modules = list(_eager_modules(model, set()))
    for module in modules:
        _change_class(module, _TO_FASTNN)
    for module in modules:
        _functional.fuse(module, names[id(module)])
    return model


def revert(model: M) -> M:
    """Turn the fastnn modules of `model` into torch's, in place: what :func:`convert` did is undone.

    Modules that were made as fastnn ones are turned too, an ``MLP`` into a ``Sequential``. Those that no
    single torch module equals stay: ``Linear`` with an activation, ``CrossEntropyLoss`` with a z-loss,
    ``GramMatrix``, and subclasses.

    Args:
        model: any module.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is no :class:`torch.nn.Module`.
    """
    _check("revert", model)
    for module in model.modules():
        _functional.unfuse(module)
        if not _beyond_torch(module):
            _change_class(module, _TO_TORCH)
    return model


def _beyond_torch(module: torch.nn.Module) -> bool:
    """Whether an option is set that the torch module lacks."""
    if isinstance(module, nn.Linear):
        return module.activation is not None
    return isinstance(module, nn.CrossEntropyLoss) and module.z_loss != 0


def _check(op: str, model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{op}: expected a torch.nn.Module, got {type(model).__name__}")


def _change_class(module: torch.nn.Module, counterparts: Mapping[type, type]) -> None:
    # The exact type: a subclass may override anything.
    counterpart = counterparts.get(type(module))
    if counterpart is not None:
        module.__class__ = counterpart


def _eager_modules(module: torch.nn.Module, seen: set[int]) -> Iterator[torch.nn.Module]:
    """Each module once, save those inside compiled ones: a change there would cost a recompilation."""
    if id(module) in seen or _is_compiled(module):
        return
    seen.add(id(module))
    yield module
    for child in module.children():
        yield from _eager_modules(child, seen)


def _is_compiled(module: torch.nn.Module) -> bool:
    dynamo = sys.modules.get("torch._dynamo")  # not there before the first torch.compile
    return getattr(module, "_compiled_call_impl", None) is not None or (
        dynamo is not None and isinstance(module, dynamo.OptimizedModule)
    )
