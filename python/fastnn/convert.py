"""Swap the classes of a model's modules, or of an optimizer, between torch and fastnn, in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from fastnn import _dispatch, _replaced, nn, optim
from fastnn._diagnostics import levels_out
from fastnn._dispatch import Conversion
from fastnn._torch_internals import MODULES, is_compiled, is_only_forward, is_schedulers_counter
from fastnn.nn import mlp as _mlp
from fastnn.nn.activation import activation_of
from fastnn.optim.native import NativeOptimizer

T = TypeVar("T", bound=torch.nn.Module | torch.optim.Optimizer)

_TO_FASTNN: dict[type, type] = {
    torch.nn.Linear: nn.Linear,
    torch.nn.ReLU: nn.ReLU,
    torch.nn.CrossEntropyLoss: nn.CrossEntropyLoss,
    torch.nn.Sequential: nn.Sequential,
    torch.optim.Adam: optim.Adam,
    torch.optim.AdamW: optim.AdamW,
    torch.optim.SGD: optim.SGD,
    torch.optim.Adagrad: optim.Adagrad,
    torch.optim.RMSprop: optim.RMSprop,
}
_TO_TORCH: dict[type, type] = {ours: theirs for theirs, ours in _TO_FASTNN.items()}
_TO_TORCH[nn.MLP] = torch.nn.Sequential


def convert(target: T) -> T:
    """Turn torch's modules in a model, or torch's optimizer, into fastnn's, in place.

    Modules: ``Linear``, ``ReLU``, ``CrossEntropyLoss`` and ``Sequential`` (which then runs consecutive
    ``Linear`` layers and activations as one op), including `target` itself. Optimizers: ``Adam``, ``AdamW``,
    ``SGD``, ``Adagrad`` and ``RMSprop``, also in the middle of a training. Only the class of an object
    changes: its identity, parameters, buffers, hooks, training flag, sharing within the model, an optimizer's
    state, groups and learning rate schedulers, and all state_dict keys stay. A hand-written ``forward`` runs
    as written, layer by layer.

    Left alone are subclasses (and thus parametrized, lazy and quantised layers), scripted modules, modules
    inside one that was compiled, and optimizers whose ``step`` was replaced. A second call changes nothing
    more. If nothing in `target` is fastnn's afterwards, a UserWarning says so.
    ``print(fastnn.explain(fastnn.convert, target))`` shows what became of each module, or why it was left
    alone.

    Code that looks for torch's exact classes finds none afterwards:
    ``torch.ao.quantization.quantize_dynamic`` would quantize nothing, so call :func:`revert` first.

    Args:
        target: any module or optimizer.

    Returns:
        `target` itself.

    Raises:
        TypeError: `target` is neither a :class:`torch.nn.Module` nor a :class:`torch.optim.Optimizer`.
    """
    parts = _parts("convert", target)
    eager = _eager_modules(target, set()) if isinstance(target, torch.nn.Module) else [target]
    mine = set(map(id, eager))
    reasons = _change(parts, _TO_FASTNN, lambda part: None if id(part) in mine else "it is compiled")
    if all(reasons) and _already("fastnn") not in reasons and not _dispatch.is_recording():
        warnings.warn(
            f"fastnn.convert changed nothing in {type(target).__name__} "
            f"({', '.join(filter(None, dict.fromkeys(reasons)))})",
            stacklevel=levels_out(),
        )
    return target


def revert(target: T) -> T:
    """Turn fastnn's modules in a model, or fastnn's optimizer, into torch's, in place: undo :func:`convert`.

    Objects that were created as fastnn's are turned too, an ``MLP`` into a ``Sequential``. Those without an
    equal in torch stay: ``Linear`` with an activation, ``CrossEntropyLoss`` with a z-loss, ``GramMatrix``,
    optimizers with ``state_dtype`` or ``master_weights``, and subclasses.

    Args:
        target: any module or optimizer.

    Returns:
        `target` itself.

    Raises:
        TypeError: `target` is neither a :class:`torch.nn.Module` nor a :class:`torch.optim.Optimizer`.
    """
    _change(_parts("revert", target), _TO_TORCH, _beyond_torch)
    return target


def _parts(op: str, target: object) -> list[tuple[str, Any]]:
    """The objects to change, with their names in `target`."""
    if isinstance(target, torch.optim.Optimizer):
        return [("", target)]
    if isinstance(target, torch.nn.Module):
        return list(target.named_modules())
    kind = type(target).__name__
    raise TypeError(f"{op}: expected a torch.nn.Module or torch.optim.Optimizer, got {kind}")


def _change(
    parts: list[tuple[str, Any]], counterparts: dict[type, type], why_not: Callable[[Any], str | None]
) -> list[str | None]:
    """Why each part was left alone, or None if it was changed."""
    before = [type(part) for _, part in parts]
    reasons = []
    for _, part in parts:
        counterpart = counterparts.get(type(part))  # the exact type: a subclass may override anything
        reason = why_not(part)
        if reason is None and counterpart is None:
            reason = _no_counterpart(part, counterparts)
        elif reason is None and isinstance(part, torch.optim.Optimizer):
            reason = _take_step_along(part, counterpart)
        if reason is None:
            part.__class__ = counterpart
        reasons.append(reason)
    if _dispatch.is_recording():  # at the end: what fuses depends on several modules
        for (name, part), kind, reason in zip(parts, before, reasons, strict=True):
            became = None if type(part) is kind else _public_name(type(part))
            fusion = _fusion(part) if counterparts is _TO_FASTNN else None
            note = "; ".join(filter(None, (reason, fusion)))
            _dispatch.record(Conversion(name, kind.__name__, became, note))
    return reasons


def _beyond_torch(part: Any) -> str | None:
    """The option in use that torch's class lacks, or None."""
    if isinstance(part, nn.Linear) and part.activation is not None:
        return "torch's has no activation"
    if isinstance(part, nn.CrossEntropyLoss) and part.z_loss != 0:
        return "torch's has no z_loss"
    if isinstance(part, NativeOptimizer) and part.state_dtype is not None:
        return "torch's has no state_dtype and no master_weights"
    return None


def _no_counterpart(part: Any, counterparts: dict[type, type]) -> str:
    kind = type(part)
    if isinstance(part, torch.jit.ScriptModule):
        return "it is scripted"
    base = next((base for base in kind.__mro__ if base in counterparts), None)
    wanted = _package(next(iter(counterparts.values())))
    # Already of the wanted package, even if it derives from a class of the other, as `nn.MLP` does.
    if kind in counterparts.values() or _package(kind) == wanted:
        return _already(wanted)
    return "no counterpart" if base is None else f"a subclass of {_public_name(base)}"


def _already(package: str) -> str:
    return f"it is {package}'s already"


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _public_name(kind: type) -> str:
    space = "optim" if issubclass(kind, torch.optim.Optimizer) else "nn"
    return f"{_package(kind)}.{space}.{kind.__name__}"


def _fusion(part: Any) -> str | None:
    """Which parts of a `Sequential` run as one op, or whether a layer can be in such an op."""
    nothing_fuses = _mlp.why_nothing_fuses()
    if type(part) in (nn.Sequential, nn.MLP):
        names, runs = list(part.__dict__[MODULES]), _mlp.fused_runs(list(part))
        where = ", ".join(f"{names[run[0]]} to {names[run[-1]]}" for run in runs)
        if runs:
            return f"one op: {where}"
        return nothing_fuses or _replaced.replaced_class() or "nothing in it fuses"
    activation = activation_of(part)
    if nothing_fuses is not None or (type(part) is not nn.Linear and activation is None):
        return None
    if not is_only_forward(part):
        return "never fuses: it has a hook, a replaced forward or a compiled one"
    return "fuses after a Linear in a Sequential" if activation not in (None, "relu") else None


def _take_step_along(optimizer: torch.optim.Optimizer, counterpart: Any) -> str | None:
    """Let a learning rate scheduler's counter around `step` call the counterpart's, or say why it cannot.

    Such a counter is an attribute of the object; its closure holds the function that it found in the class.
    """
    step: Any = optimizer.__dict__.get("step")
    if step is None:
        return None
    if is_schedulers_counter(step):
        for cell in step.__closure__ or ():
            if cell.cell_contents is type(optimizer).step:
                cell.cell_contents = counterpart.step
                return None
    return "its step is replaced"


def _eager_modules(module: torch.nn.Module, seen: set[int]) -> Iterator[torch.nn.Module]:
    """Each module once, except those inside compiled ones: a change there would cost a recompilation."""
    if id(module) in seen or is_compiled(module):
        return
    seen.add(id(module))
    yield module
    for child in module.children():
        yield from _eager_modules(child, seen)
