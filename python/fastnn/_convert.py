"""Swap the classes of a model's modules between torch and fastnn, in place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from fastnn import _backend, nn
from fastnn._backend import Conversion
from fastnn.nn import mlp as _mlp
from fastnn.nn.activation import activation_of

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
    """Turn torch's modules in `model` into fastnn's where there are such, in place.

    These are ``Linear``, ``ReLU``, ``CrossEntropyLoss`` and ``Sequential`` (which then runs each stretch of
    ``Linear`` and activation as one op), the root included. Only the class of a module changes: its identity,
    parameters, buffers, hooks, the training flag, sharing between places of the model and optimizers that
    hold the parameters stay. A ``forward`` that is written by hand runs as written, its layers one by one.

    Left alone are subclasses (so also parametrized, lazy and quantised layers), scripted modules, and
    whatever is inside a module that ``torch.compile`` took. Calling it again changes nothing more.
    ``print(fastnn.explain(fastnn.convert, model))`` says what became of each module, and why not.

    What looks for torch's exact classes finds none: ``torch.ao.quantization.quantize_dynamic`` would quantize
    nothing, so call :func:`revert` first.

    Args:
        model: any module.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is no :class:`torch.nn.Module`.
    """
    parts = _parts("convert", model)
    eager = set(map(id, _eager_modules(model, set())))
    _change(parts, _TO_FASTNN, lambda part: None if id(part) in eager else "torch.compile took it")
    return model


def revert(model: M) -> M:
    """Turn fastnn's modules in `model` into torch's, in place: undo :func:`convert`.

    What was made as fastnn's is turned too, an ``MLP`` into a ``Sequential``. What nothing of torch's equals
    stays: ``Linear`` with an activation, ``CrossEntropyLoss`` with a z-loss, ``GramMatrix``, and subclasses.

    Args:
        model: any module.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is no :class:`torch.nn.Module`.
    """
    _change(_parts("revert", model), _TO_TORCH, _beyond_torch)
    return model


def _parts(op: str, model: object) -> list[tuple[str, Any]]:
    """What there is to change, with the names that it has in `model`."""
    if isinstance(model, torch.nn.Module):
        return list(model.named_modules())
    raise TypeError(f"{op}: expected a torch.nn.Module, got {type(model).__name__}")


def _change(
    parts: list[tuple[str, Any]], counterparts: dict[type, type], why_not: Callable[[Any], str | None]
) -> None:
    before = [type(part) for _, part in parts]
    reasons = []
    for _, part in parts:
        counterpart = counterparts.get(type(part))  # the exact type: a subclass may override anything
        reason = why_not(part)
        if reason is None and counterpart is None:
            reason = _no_counterpart(part, counterparts)
        if reason is None:
            part.__class__ = counterpart
        reasons.append(reason)
    if _backend.is_recording():  # after all: what fuses hangs on several modules
        for (name, part), kind, reason in zip(parts, before, reasons, strict=True):
            became = None if type(part) is kind else _public_name(type(part))
            fusion = _fusion(part) if counterparts is _TO_FASTNN else None
            note = "; ".join(filter(None, (reason, fusion)))
            _backend.record(Conversion(name, kind.__name__, became, note))


def _beyond_torch(part: Any) -> str | None:
    """Which option is set that torch's lacks, or None."""
    if isinstance(part, nn.Linear) and part.activation is not None:
        return "torch's has no activation"
    if isinstance(part, nn.CrossEntropyLoss) and part.z_loss != 0:
        return "torch's has no z_loss"
    return None


def _no_counterpart(part: Any, counterparts: dict[type, type]) -> str:
    kind = type(part)
    if isinstance(part, torch.jit.ScriptModule):
        return "it is scripted"
    base = next((base for base in kind.__mro__ if base in counterparts), None)
    wanted = _package(next(iter(counterparts.values())))
    if kind in counterparts.values() or (base is None and _package(kind) == wanted):
        return f"it is {wanted}'s already"
    return "no counterpart" if base is None else f"a subclass of {_public_name(base)}"


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _public_name(kind: type) -> str:
    return f"{_package(kind)}.nn.{kind.__name__}"


def _fusion(part: Any) -> str | None:
    """What of a `Sequential` runs as one op, or whether a layer can be in such an op."""
    nothing_fuses = _mlp.why_nothing_fuses()
    if type(part) in (nn.Sequential, nn.MLP):
        names, runs = list(part._modules), _mlp.fused_runs(list(part))
        where = ", ".join(f"{names[run[0]]} to {names[run[-1]]}" for run in runs)
        return f"one op: {where}" if runs else nothing_fuses or "nothing in it fuses"
    activation = activation_of(part)
    if nothing_fuses is not None or (type(part) is not nn.Linear and activation is None):
        return None
    if not _mlp._only_forward(part):
        return "never fuses: it has a hook, a replaced forward or a compiled one"
    return "fuses behind a Linear in a Sequential" if activation not in (None, "relu") else None


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
