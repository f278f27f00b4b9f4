"""What must stay unchanged for a native step to do what the eager one would.

Each function adds to a `Watch` of the compiled module, which checks all of it within a microsecond or two.
They raise `Unsupported` if there already is something that the native step would ignore.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch

from fastnn import _replaced, _torch_internals
from fastnn._dispatch import Unsupported, refuse
from fastnn._torch_internals import (
    BUFFERS,
    COMPILED_CALL,
    LEAF_HOOKS,
    MODULE_CALL,
    MODULE_HOOKS,
    MODULE_LISTING,
    MODULES,
    PARAMETERS,
    STEP_HOOKS,
    on_accumulator,
    on_leaf,
    on_saved_tensors,
)
from fastnn.capture.names import is_library, of_class

_GLOBAL_HOOKS = (
    _torch_internals.all_forward_hooks,
    _torch_internals.all_forward_pre_hooks,
    _torch_internals.all_backward_hooks,
    _torch_internals.all_backward_pre_hooks,
    _torch_internals.all_step_pre_hooks,
    _torch_internals.all_step_post_hooks,
)
_UNKNOWN_HOOKS = "this torch keeps hooks where fastnn does not find them"
_ONLOOKERS: dict[tuple[Callable[[], Any], Any], str] = {
    (torch.is_anomaly_enabled, False): "anomaly detection is on",
}
if on_saved_tensors is not None:
    _ONLOOKERS[functools.partial(on_saved_tensors, True), None] = "a hook for saved tensors is set"


def present_obstacle() -> str | None:
    """What keeps a step from running natively in this call alone, or None."""
    return "inference mode is on" if torch.is_inference_mode_enabled() else watched_backward()


def watched_backward() -> str | None:
    """What observes the backward of this call alone, or None."""
    return next((why for (ask, nobody), why in _ONLOOKERS.items() if ask() is not nobody), None)


def unwatched_backward() -> list[tuple[Callable[[], Any], Any]]:
    """What `watched_backward` queries, and the answers if nothing observes it."""
    return list(_ONLOOKERS)


def watch_globals(watch: Any) -> None:
    """There are no global hooks of modules or optimizers."""
    if not _torch_internals.names_known:
        raise Unsupported(_UNKNOWN_HOOKS)
    for hooks in _GLOBAL_HOOKS:
        _stays_empty(watch, hooks, "a hook for all modules or optimizers is registered")


def watch_module(watch: Any, module: torch.nn.Module) -> None:
    """Calling the module does what its class now defines and nothing else."""
    watch.type(module)
    kind = type(module)
    name = kind.__name__
    for method in MODULE_CALL:
        if getattr(kind, method) is not getattr(torch.nn.Module, method):
            raise Unsupported(f"{name} has its own {method}")
    for method in (*MODULE_CALL, "forward"):
        watch.class_item(kind, method, getattr(kind, method))
    # Attributes of the module, parameters and buffers: a property of the class would take precedence.
    for table in (module.__dict__, module.__dict__[PARAMETERS], module.__dict__[BUFFERS]):
        for key in table:
            found = of_class(kind, key)
            if found is None:
                watch.class_absent(kind, key)
            elif hasattr(type(found), "__set__"):
                raise Unsupported(f"{name} has a property {key}")
            else:
                watch.class_item(kind, key, found)
    watch_hooks(watch, module)
    for replaced in ("forward", COMPILED_CALL):
        if replaced in module.__dict__:
            raise Unsupported(f"{name} has a replaced or compiled forward")
        watch.absent(module.__dict__, replaced)


def watch_hooks(watch: Any, module: torch.nn.Module) -> None:
    """No hook is registered on the module."""
    for hooks in MODULE_HOOKS:
        _stays_empty(watch, module.__dict__[hooks], f"{type(module).__name__} has a hook")


def watch_parts(watch: Any, module: torch.nn.Module, tables: Iterable[str]) -> None:
    """Parameters, modules and the like of a module; a scripted one has none in Python."""
    found = [module.__dict__.get(table) for table in tables]
    if not all(type(table) in (dict, OrderedDict) for table in found):
        raise Unsupported(f"{type(module).__name__} keeps its parts where they are not watched")
    for table in found:
        watch.content(table)


def watch_tables(watch: Any, model: torch.nn.Module) -> None:
    """``model.parameters()`` stays the same."""
    for module in model.modules():
        kind = type(module)
        for name in MODULE_LISTING:
            if getattr(kind, name) is not getattr(torch.nn.Module, name) or name in module.__dict__:
                raise Unsupported(f"{kind.__name__} has its own {name}()")
        watch_parts(watch, module, (MODULES, PARAMETERS))


def watch_optimizer(watch: Any, optimizer: torch.optim.Optimizer) -> None:
    """A step of the optimizer is the one that torch or fastnn defines; a scheduler's counting wrapper
    changes nothing."""
    watch.type(optimizer)
    kind = type(optimizer)
    names = _replaced.Names(_replaced.parts_of_step(_replaced.torchs_class(kind)))
    if is_library(kind.__module__):
        names.add(kind, "step")
    else:
        watch.class_item(kind, "step", kind.step)
    refuse(names.first_replaced())
    names.add_to(watch)
    attributes = optimizer.__dict__
    for hooks in STEP_HOOKS:
        _stays_empty(watch, attributes[hooks], "the optimizer has a step hook")
    for scaling in ("grad_scale", "found_inf"):
        if scaling in attributes:
            raise Unsupported("a GradScaler leaves the scaling to the optimizer")
        watch.absent(attributes, scaling)
    step = attributes.get("step")
    if step is None:
        watch.absent(attributes, "step")
    elif _torch_internals.is_schedulers_counter(step):
        watch.item(attributes, "step", step)
    else:
        raise Unsupported("the optimizer's step is replaced")


def same_global_hooks(watch: Any) -> None:
    """The global hooks of modules and optimizers stay those of now."""
    if not _torch_internals.names_known:
        raise Unsupported(_UNKNOWN_HOOKS)
    for hooks in _GLOBAL_HOOKS:
        watch.content(hooks)


def same_hooks(watch: Any, leaf: torch.Tensor) -> None:
    """The hooks of a tensor that requires gradients stay those of now."""
    if not on_leaf(leaf):
        watch.unhooked(leaf, on_accumulator)
        return
    for name in LEAF_HOOKS:
        hooks = getattr(leaf, name, None)
        watch.attribute(leaf, name, hooks)
        if hooks is not None:
            watch.content(hooks)
    if any(on_accumulator(leaf) or ()):
        raise Unsupported("the gradient accumulator of a parameter has a hook")


def _stays_empty(watch: Any, hooks: dict[Any, Any], reason: str) -> None:
    if hooks:
        raise Unsupported(reason)
    watch.content(hooks)
