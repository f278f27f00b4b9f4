"""Every non-public name of torch that is used, and what happens if a torch version lacks it.

Names in torch's modules are bound here, once; names of attributes of its objects are constants, for
``__dict__``, or hidden by a function. (csrc/bindings/accumulator_hooks.cpp reads a parameter's hooks as
`on_leaf` does.)
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.modules.module as _module
import torch.optim.optimizer as _optimizer
from torch import Tensor
from torch.autograd import forward_ad, profiler
from torch.nn import _reduction
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

# Without these, and the imports above, fastnn does not import: they are private only by location.
OpOverload = torch._ops.OpOverload
TensorBase = torch._C.TensorBase  # has the methods implemented in C++
legacy_reduction = _reduction.legacy_get_string  # the meaning of size_average and reduce


def is_composite(op: Any) -> bool:
    """Whether an op is composed of others."""
    return bool(op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def arguments_of(op: Any) -> Sequence[Any]:
    """The arguments in an op's signature."""
    return op._schema.arguments  # type: ignore[no-any-return]


# What `_dispatch` checks before every op: if torch drops one, native kernels are lost, not the import. They
# are bound once: a look-up along `torch._C._functorch` costs more than the call.
missing_check: str | None = None
jit_state: Callable[[], Any] = lambda: None  # noqa: E731  # looked up by name
FORWARD_LEVEL = "_current_level"  # in the variables of torch.autograd.forward_ad
try:
    from torch.utils._device import DeviceContext as DeviceContext

    functorch_level = torch._C._functorch.peek_interpreter_stack
    dispatch_modes = torch._C._len_torch_dispatch_stack
    function_modes = torch._C._len_torch_function_stack
    function_mode_at = torch._C._get_function_stack_at
    any_autocast = torch._C._is_any_autocast_enabled
    has_storage = torch._C._has_storage
    jit_state = torch._C._get_tracing_state
    vars(forward_ad)[FORWARD_LEVEL]
except (ImportError, AttributeError, KeyError) as error:
    missing_check = str(error)

# Whether the running backward reaches a node; a torch without it computes every gradient.
will_run: Callable[[Any], bool] | None = getattr(torch._C, "_will_engine_execute_node", None)
# Whether the running backward retains the graph; without it, what was saved is kept.
keeps_graph: Callable[[], bool] = getattr(
    getattr(torch._C, "_autograd", None), "_get_current_graph_task_keep_graph", lambda: True
)
# Nodes of the autograd graph that are written in Python; without it no node is recognised.
PythonNode: Any = getattr(torch.autograd.function, "BackwardCFunction", ())
# Without these two fastnn does not import.
version_of: Callable[[Tensor], int] = Tensor._version.__get__  # type: ignore[attr-defined]
is_view = Tensor._is_view

# ``on_saved_tensors(True)`` returns the hooks for whatever autograd saves, as set by `saved_tensors_hooks`,
# or None.
on_saved_tensors: Any = getattr(
    getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None
)

# Where torch keeps what else a call of a module, or a step of an optimizer, does; None if it keeps it
# elsewhere. These dicts are changed in place, never replaced.
all_forward_hooks: Any = getattr(_module, "_global_forward_hooks", None)
all_forward_pre_hooks: Any = getattr(_module, "_global_forward_pre_hooks", None)
all_backward_hooks: Any = getattr(_module, "_global_backward_hooks", None)
all_backward_pre_hooks: Any = getattr(_module, "_global_backward_pre_hooks", None)
all_step_pre_hooks: Any = getattr(_optimizer, "_global_optimizer_pre_hooks", None)
all_step_post_hooks: Any = getattr(_optimizer, "_global_optimizer_post_hooks", None)

# Attributes of every module.
PARAMETERS, BUFFERS, MODULES = "_parameters", "_buffers", "_modules"
FORWARD_HOOKS, FORWARD_PRE_HOOKS = "_forward_hooks", "_forward_pre_hooks"
BACKWARD_HOOKS, BACKWARD_PRE_HOOKS = "_backward_hooks", "_backward_pre_hooks"
MODULE_HOOKS = (FORWARD_HOOKS, FORWARD_PRE_HOOKS, BACKWARD_HOOKS, BACKWARD_PRE_HOOKS)
COMPILED_CALL = "_compiled_call_impl"  # where ``Module.compile`` puts it
COMPILED = "_orig_mod"  # the module that torch.compile has wrapped in another
# The methods of a call of a module, and those that `Module.parameters` consists of.
MODULE_CALL = ("__call__", "_call_impl", "_wrapped_call_impl")
MODULE_LISTING = ("parameters", "named_parameters", "_named_members", "named_modules")

# Attributes of every tensor.
LEAF_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")

# Attributes of every optimizer.
STEP_PRE_HOOKS, STEP_POST_HOOKS = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"
STEP_HOOKS = (STEP_PRE_HOOKS, STEP_POST_HOOKS)
# The method that a step of torch's own classes calls; a class may lack it.
INIT_GROUP = "_init_group"

# With a torch that has other names no layers are fused, no step skips torch's wrapping, and no training step
# runs natively.
module_names_known = (
    None not in (all_forward_hooks, all_forward_pre_hooks, all_backward_hooks, all_backward_pre_hooks)
    and {PARAMETERS, BUFFERS, MODULES, *MODULE_HOOKS} <= torch.nn.Module().__dict__.keys()
    and hasattr(torch.nn.Module, COMPILED_CALL)
)
step_names_known = None not in (
    all_step_pre_hooks,
    all_step_post_hooks,
    getattr(profiler, "_is_profiler_enabled", None),
)
names_known = (
    module_names_known and step_names_known and on_saved_tensors is not None and hasattr(Tensor, "_use_count")
)


# Makes the current stream of a CUDA device idle for so many cycles, if torch can.
idle_on_device: Callable[[int], object] = getattr(torch.cuda, "_sleep", lambda cycles: None)


def is_profiling() -> bool:
    """Whether a profiler runs, or that cannot be seen; checked in every native call."""
    try:
        return profiler._is_profiler_enabled
    except AttributeError:
        return True


def any_hook_of_all_modules() -> bool:
    """Whether there are global hooks of modules."""
    return bool(all_forward_hooks or all_forward_pre_hooks or all_backward_hooks or all_backward_pre_hooks)


def is_only_forward(module: torch.nn.Module) -> bool:
    """Whether calling `module` does nothing besides the forward of its class."""
    state = module.__dict__
    return not (
        any(state[hooks] for hooks in MODULE_HOOKS)
        or "forward" in state
        or getattr(module, COMPILED_CALL) is not None
    )


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether torch.compile has compiled the module or wraps it; no if torch keeps it elsewhere."""
    dynamo = sys.modules.get("torch._dynamo")  # not there before the first torch.compile
    return getattr(module, COMPILED_CALL, None) is not None or (
        dynamo is not None and isinstance(module, dynamo.OptimizedModule)
    )


def without_compilation() -> contextlib.AbstractContextManager[None]:
    """Code compiled by torch.compile runs eagerly in this block."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes seconds
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def is_schedulers_counter(step: Any) -> bool:
    """Whether a step on an optimizer object is a scheduler's counter; no if that cannot be seen."""
    return hasattr(step, "_wrapped_by_lr_sched")


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """Tell schedulers, which would warn otherwise, that a step was taken."""
    optimizer._opt_called = True  # type: ignore[attr-defined]


def fill_lists(optimizer: torch.optim.Optimizer, group: dict[str, Any], lists: Sequence[list[Any]]) -> Any:
    """Make an optimizer create the state that its first step would create, and fill lists with it.

    torch.compile knows this method by name, and runs it as it is.
    """
    return optimizer._init_group(group, *lists)  # type: ignore[attr-defined]


class OptimizerParts(torch.optim.Optimizer):
    """A base before one of torch's optimizers, with methods for what its private ones do.

    With a torch without the first, the state of fastnn's optimizers cannot be created; without the second,
    there are no hooks for a step that was put into its class before an optimizer is made.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Any]) -> Any:
        return self.init_lists(group, *lists)

    def init_lists(self, group: dict[str, Any], *lists: list[Any]) -> Any:
        """Fill lists with the tensors of a group, creating missing state."""
        return super()._init_group(group, *lists)  # type: ignore[misc]

    def _patch_step_function(self) -> None:
        super()._patch_step_function()
        self.step_is_wrapped()

    def step_is_wrapped(self) -> None:
        """Called after torch has wrapped the step of the class."""


# torch's check that a step may be captured into a CUDA graph; its name changed after torch 2.10. A torch that
# has neither goes without.
check_graph_capture: Callable[[torch.optim.Optimizer], None] | None = getattr(
    torch.optim.Optimizer,
    "_accelerator_graph_capture_health_check",
    getattr(torch.optim.Optimizer, "_cuda_graph_capture_health_check", None),
)

# Many tensors in few launches; without them one at a time.
lerp_each: Callable[..., None] | None = getattr(torch, "_foreach_lerp_", None)
_add_each = getattr(torch, "_foreach_add_", None)


def add_to_each(tensors: list[Tensor], number: float) -> None:
    """Add a number to every tensor."""
    if _add_each is not None:
        _add_each(tensors, number)
        return
    for tensor in tensors:
        tensor.add_(number)


def end_allocation(device: torch.device, pool: Any) -> None:
    """Stop CUDA's allocator from allocating from a pool; a torch without this is left as it is."""
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    if end is not None:
        end(device.index, pool)


# The id of the backward in which the calling thread is, -1 if in none.
_current_backward: Callable[[], int] | None = getattr(torch._C, "_current_graph_task_id", None)


def within_backward() -> bool:
    """Whether autograd runs a backward in this thread; yes if that cannot be seen."""
    return _current_backward is None or _current_backward() != -1


def base_of(tensor: Tensor) -> Tensor | None:
    """What a tensor is a view of, which it keeps alive; None if it is not a view."""
    return tensor._base


def clear_workspaces() -> None:
    """Make cuBLAS free its workspaces for streams; without this function they are kept."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()


def on_accumulator(param: Tensor) -> tuple[dict[int, Any], ...] | None:
    """The dicts in which the gradient accumulator of `param` keeps its hooks; None if it may have others.

    An accumulator without references is made again, without hooks: no dicts then.

    torch keeps one dict of hooks and one of pre-hooks with each accumulator while it is alive, and puts later
    hooks into the same; a hook that is added and removed reveals them. C++ hooks, by which
    `DistributedDataParallel` reduces gradients, cannot be seen.
    """
    before = param._use_count()  # type: ignore[attr-defined]
    if torch.is_grad_enabled():
        node = _accumulator(param)
    else:
        with torch.enable_grad():
            node = _accumulator(param)
    if param._use_count() != before:  # type: ignore[attr-defined]  # it holds one more reference
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
    """Whether anything but accumulation happens when the gradient of `param` arrives."""
    if any(getattr(param, hooks, None) for hooks in LEAF_HOOKS):
        return True  # empty if the last one has been removed
    if not param.requires_grad or param._use_count() == 1:  # type: ignore[attr-defined]
        return False  # no accumulator is alive
    tables = on_accumulator(param)
    return tables is None or any(tables)
