"""Hooks that only autograd knows of: a step that does without autograd has to look for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# ``on_saved_tensors(True)`` gives the hooks for whatever autograd saves, as `saved_tensors_hooks` sets them,
# or None.
on_saved_tensors: Any = getattr(
    getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None
)
names_known = on_saved_tensors is not None and hasattr(Tensor, "_use_count")


def on_accumulator(param: Tensor) -> tuple[dict[int, Any], ...] | None:
    """The dicts in which the gradient accumulator of `param` keeps its hooks; None where it may have others.

    An accumulator that nobody holds is made anew, without hooks: no dicts then.

    torch keeps one dict of hooks and one of pre-hooks with each accumulator, as long as that lives, and puts
    later ones into the same; a hook that is added and removed shows them. Those of C++, by which
    `DistributedDataParallel` reduces gradients, cannot be seen.
    """
    before = param._use_count()  # type: ignore[attr-defined]
    if torch.is_grad_enabled():
        node = _accumulator(param)
    else:
        with torch.enable_grad():
            node = _accumulator(param)
    if param._use_count() != before:  # type: ignore[attr-defined]  # it holds the parameter, now one more time
        return ()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return None
    tables = []
    for register in (node.register_hook, node.register_prehook):
        handle = register(_nothing)
        tables.append(handle.hooks_dict_ref())
        handle.remove()
    return tuple(tables)


def _accumulator(param: Tensor) -> Any:
    view: Any = param.view_as(param)
    return view.grad_fn.next_functions[0][0]


def _nothing(*_: Any) -> None:
    pass


def on_leaf(param: Tensor) -> bool:
    """Whether anything happens when the gradient of `param` arrives, besides that it is kept."""
    if param._backward_hooks or getattr(param, "_post_accumulate_grad_hooks", None):
        return True  # empty where the last one has been removed
    if not param.requires_grad or param._use_count() == 1:  # type: ignore[attr-defined]
        return False  # no accumulator is alive
    tables = on_accumulator(param)
    return tables is None or any(tables)
