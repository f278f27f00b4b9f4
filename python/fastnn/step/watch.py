"""What a recorded training step watches besides what every program does."""

from __future__ import annotations

from typing import Any

import torch

from fastnn import _replaced, _torch_internals
from fastnn._dispatch import Unsupported, refuse
from fastnn._torch_internals import COMPILED, COMPILED_CALL, MODULES
from fastnn.capture.watch import watch_globals, watch_hooks, watch_optimizer

_CALLED = ("zero_grad", "parameters")  # by `TrainStep` itself


def watch_step(watch: Any, model: torch.nn.Module, loss: Any, optimizer: torch.optim.Optimizer) -> None:
    """Watch hooks, which a captured function runs only while it is recorded, and what is called besides the
    code of the model and of the loss.

    Raises:
        Unsupported: there is a hook, or something else that a replay would bypass.
    """
    watch_globals(watch)
    watch_optimizer(watch, optimizer)
    roots = [root for root in (model, loss) if isinstance(root, torch.nn.Module)]
    modules = {id(m): m for root in roots for m in root.modules()}
    for module in modules.values():
        kind, state = type(module), module.__dict__
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            raise Unsupported("DistributedDataParallel averages gradients over processes while backward runs")
        watch_hooks(watch, module)
        if state.get(COMPILED_CALL) is not None or COMPILED in state[MODULES]:
            raise Unsupported(f"{kind.__name__} is compiled")
        for name in _CALLED:
            watch.class_item(kind, name, getattr(kind, name))
    params = {id(p): p for m in modules.values() for p in m.parameters(recurse=False)}
    params |= {id(p): p for group in optimizer.param_groups for p in group["params"]}
    for p in params.values():
        if _torch_internals.on_leaf(p):
            raise Unsupported("a parameter has a hook")
        watch.unhooked(p, _torch_internals.on_accumulator)
    for names in (_replaced.classes, _replaced.losses, _replaced.functions):
        refuse(names.replaced())
        names.add_to(watch)
