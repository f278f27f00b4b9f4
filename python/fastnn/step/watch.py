"""Watches what the next step of any model depends on: if that changes, the step is recorded again."""

from __future__ import annotations

from typing import Any

import torch

from fastnn import _replaced, _torch_internals
from fastnn._dispatch import Unsupported
from fastnn._torch_internals import COMPILED, COMPILED_CALL, MODULES
from fastnn.capture.names import Code, is_library, is_plain, names_in_class, of_class
from fastnn.capture.watch import watch_globals, watch_hooks, watch_optimizer, watch_parts

_TABLES = (_torch_internals.PARAMETERS, _torch_internals.BUFFERS, _torch_internals.MODULES)
_LARGEST = 256  # entries of a container that is watched: a vocabulary does not change
_CALL = (*_torch_internals.MODULE_CALL, "forward", "zero_grad", "parameters")


def watch_step(watch: Any, model: torch.nn.Module, loss: Any, optimizer: torch.optim.Optimizer) -> None:
    """Watch everything that a recording of the step takes for granted.

    That is the modules' classes, attributes, parts and hooks, the hooks of parameters, the optimizer's, and
    what the code of forwards and losses that are not torch's reads: variables and attributes by name,
    including those read in the functions and methods that it calls. What is deeper is not watched: an
    attribute of an attribute of an attribute, or what another library's code reads.

    Raises:
        Unsupported: there is a hook, or something else that a replay would bypass.
    """
    # First the most frequent obstacles: reading code takes longer.
    watch_globals(watch)
    watch_optimizer(watch, optimizer)
    roots = [root for root in (model, loss) if isinstance(root, torch.nn.Module)]
    modules = {id(m): m for root in roots for m in root.modules()}
    for module in modules.values():
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            raise Unsupported("DistributedDataParallel averages gradients over processes while backward runs")
        watch_hooks(watch, module)
    params = {id(p): p for m in modules.values() for p in m.parameters(recurse=False)}
    params |= {id(p): p for group in optimizer.param_groups for p in group["params"]}
    for p in params.values():
        if _torch_internals.on_leaf(p):
            raise Unsupported("a parameter has a hook")
        watch.unhooked(p, _torch_internals.on_accumulator)
    for names in (_replaced.classes, _replaced.losses, _replaced.functions):
        names.add_to(watch)
    code = Code(watch)
    code.found(model)
    code.found(loss)
    code.follow_methods()
    for key, module in code.modules.items():
        if key not in modules:  # e.g. a teacher model
            watch_hooks(watch, module)
        _watch_module(watch, module, code.names)
    for other in code.objects.values():
        _watch_inside(watch, other, code.names)


def _watch_module(watch: Any, module: torch.nn.Module, names: set[str]) -> None:
    kind, state = type(module), module.__dict__
    watch.type(module)
    watch_parts(watch, module, _TABLES)
    if state.get(COMPILED_CALL) is not None or COMPILED in state[MODULES]:
        raise Unsupported(f"{kind.__name__} is compiled")
    for name in _CALL:
        watch.class_item(kind, name, getattr(kind, name))
    read = names | {"training", "forward"}
    if _replaced.is_own(kind.forward):
        read = read | names_in_class(kind)
    _watch_named(watch, state, read, 2)


def _watch_named(watch: Any, table: dict[str, Any], names: set[str], depth: int) -> None:
    """Attributes with these names: others, such as a counter of steps, may change."""
    for name in names:
        if name in table:
            watch.item(table, name, table[name])
            _watch_inside(watch, table[name], names, depth - 1)
        else:
            watch.absent(table, name)


def _watch_inside(watch: Any, value: Any, names: set[str], depth: int = 2) -> None:
    """The entries of a container, if few, or the attributes with these names of a plain object."""
    if isinstance(value, (dict, list)):
        if len(value) <= _LARGEST:
            (watch.content if isinstance(value, dict) else watch.elements)(value)
    elif depth and is_plain(value):
        kind = type(value)
        for name in () if is_library(kind.__module__) else names:
            if (found := of_class(kind, name)) is not None:
                watch.class_item(kind, name, found)
        _watch_named(watch, value.__dict__, names, depth)
