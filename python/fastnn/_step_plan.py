"""What a training step needs to know of model, loss and optimizer to run as one native call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _autograd_hooks, _backend, _replaced, nn, optim
from fastnn._chain import LinearChain, linear_chain
from fastnn._purity import Refusal
from fastnn._step_graph import StepGraphs
from fastnn._watch import watch_chain, watch_globals, watch_module, watch_optimizer, watch_tables
from fastnn.ops.cross_entropy import REDUCTIONS, cross_entropy
from fastnn.optim._native import NativeOptimizer, _match_layout

if TYPE_CHECKING:
    from fastnn._train_step import TrainStep

Loss = Callable[[Any, Tensor], Tensor]

_LOSS_MODULES: dict[type, str] = {
    torch.nn.CrossEntropyLoss: "cross_entropy",
    nn.CrossEntropyLoss: "cross_entropy",
    torch.nn.MSELoss: "mse_loss",
}
_LOSS_FUNCTIONS: dict[Any, str] = {
    F.cross_entropy: "cross_entropy",
    cross_entropy: "cross_entropy",
    F.mse_loss: "mse_loss",
}
# What each optimizer, fastnn's or torch's, is updated as.
_OPTIMIZERS: dict[type, type[NativeOptimizer]] = {
    kind: ours
    for ours in (optim.Adam, optim.AdamW, optim.SGD, optim.RMSprop, optim.Adagrad)
    for kind in (ours, ours._torchs)
}

_torch_zero_grad = _replaced.original(torch.nn.Module, "zero_grad")

# Class weight, name of the loss, reduction, ignore_index, label_smoothing, z_loss.
LossOptions = tuple[Tensor | None, str, int, int, float, float]


class StepPlan:
    """A step that can run natively as long as `holds`; making it raises `Refusal` where it cannot.

    Attributes:
        native: the compiled module's part, which reads and checks the tensors of each call.
        chain: the layers.
        inputs: how many the model takes.
        tables: the parameters of each layer, by their names in it.
        last: those of the last layer, whose dtype the loss has.
        unused: parameters of the model that no layer of the chain has.
        optimizer_name: that of its update among the native ones.
        loss_like: a tensor such as the loss of the last step was; `torch.empty_like` of it takes half of the
            microsecond that `new_empty` does.
        graphs: of CUDA, that have captured the step.
    """

    def __init__(self, step: TrainStep, chain: LinearChain, loss_name: str, optimizer_name: str) -> None:
        self.native = _backend.cpu.TrainStep(
            [(module._parameters, activation) for module, activation in chain],
            optimizer_name,
            chain.flatten,
            chain.squeeze,
            step.max_norm,
            step.keep_grad,
            step.mean,
            step.std,
            _match_layout,
            _autograd_hooks.on_accumulator,
        )
        self.tables = [module._parameters for module, _ in chain]
        self.last = self.tables[-1]
        self.optimizer_name = optimizer_name
        self.loss_like = torch.empty((), device="cpu")
        self.graphs = StepGraphs()
        self._loss_name = loss_name
        self._loss_module = step.loss if isinstance(step.loss, torch.nn.Module) else None
        self.chain = chain
        self.inputs = len(chain.order)
        self._watch = _backend.cpu.Watch()
        watch_globals(self._watch)
        _replaced.classes.add_to(self._watch)
        self._watches_all = watch_chain(self._watch, chain)
        if self._loss_module is not None:
            watch_module(self._watch, self._loss_module)
        watch_optimizer(self._watch, step.optimizer)
        watch_tables(self._watch, step.model)
        self._watch.absent(step.model.__dict__, "zero_grad")
        self._watch.class_item(type(step.model), "zero_grad", _torch_zero_grad)
        chained = {id(p) for table in self.tables for p in table.values()}
        self.unused = [p for p in step.model.parameters() if id(p) not in chained]

    def holds(self) -> bool:
        """Whether model, loss and optimizer still are what they were, and nobody watches them."""
        return self._watch.unchanged() and (self._watches_all or self.chain.holds())

    def joined(self, inputs: tuple[Any, ...], keep_grad: bool) -> Tensor | str:
        """What goes into the first layer of a model that joins several `inputs`, or why it cannot natively.

        In the result the native call no longer sees what it would refuse in one of them.
        """
        if len(inputs) != self.inputs:
            return f"inputs: {len(inputs)} given, {self.inputs} expected"
        reason = _backend.torch_reason(*inputs)
        if reason is not None:
            return reason
        for t in inputs:
            if t is None or t.dim() != 2:
                return "one of several inputs is no matrix"
            if t.requires_grad:
                return "an input requires grad"
        if keep_grad and self._gradients_share_memory_with(inputs):
            return "a .grad and an input share memory"
        return torch.cat([inputs[i] for i in self.chain.order], 1)  # raises what the model's own would

    def _gradients_share_memory_with(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether writing a ``.grad`` may change one of `inputs`; their storages are looked at as a whole."""
        memory = {t.untyped_storage().data_ptr() for t in inputs}
        grads = (p.grad for table in self.tables for p in table.values() if p is not None)
        return any(
            g is not None and g.layout is torch.strided and g.untyped_storage().data_ptr() in memory
            for g in grads
        )

    def loss_options(self) -> LossOptions | str:
        """The options of the loss as they are now, or why they are not covered."""
        module = self._loss_module
        if module is None:
            return None, self._loss_name, REDUCTIONS["mean"], -100, 0.0, 0.0
        options = module.__dict__
        reduction = REDUCTIONS.get(options["reduction"])
        if reduction is None:
            return f"reduction={options['reduction']!r}"
        if self._loss_name == "mse_loss":
            return None, self._loss_name, reduction, -100, 0.0, 0.0
        ignore_index, smoothing = options["ignore_index"], options["label_smoothing"]
        if type(ignore_index) is not int or not -(2**63) <= ignore_index < 2**63:
            return f"ignore_index={ignore_index!r}"
        if not 0.0 <= smoothing <= 1.0:
            return f"label_smoothing={smoothing}"
        if "weight" not in module._buffers:
            return "the class weights are no buffer"
        z_loss = options.get("z_loss", 0.0)
        return module._buffers["weight"], self._loss_name, reduction, ignore_index, smoothing, z_loss


_LONGEST_PAUSE = 63


class Refused:
    """Why there is no plan, and for how many calls that is believed before it is looked at again.

    Looking takes longer than a small step, the more so where a forward has to be traced; the pause doubles
    each time, up to `_LONGEST_PAUSE`, so that it costs next to nothing in a model that never fits.
    """

    def __init__(self, reason: str, pause: int) -> None:
        self.reason = reason
        self.pause = pause
        self.left = pause


def make_plan(step: TrainStep, last: StepPlan | Refused | None) -> StepPlan | Refused:
    """The plan for `step`, or why there is none; `last` is what was found the last time."""
    if isinstance(last, Refused) and last.left > 0:
        last.left -= 1
        return last
    plan = _plan_or_reason(step)
    if isinstance(plan, StepPlan):
        return plan
    pause = min(2 * last.pause + 1, _LONGEST_PAUSE) if isinstance(last, Refused) else 0
    return Refused(plan, pause)


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer, one of those with a plan, make the state that its first step would make.

    It makes it for parameters that have a gradient, of which only the shape is looked at.
    """
    lists = _OPTIMIZERS[type(optimizer)]._lists
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = param.detach()
        try:
            optimizer._init_group(group, *([] for _ in range(lists)))  # type: ignore[attr-defined]
        finally:
            for param in group["params"]:
                param.grad = None


def _plan_or_reason(step: TrainStep) -> StepPlan | str:
    reason = _replaced.replaced_class()
    if reason is not None:
        return reason
    loss, optimizer = step.loss, step.optimizer
    is_module = isinstance(loss, torch.nn.Module)
    loss_name = _LOSS_MODULES.get(type(loss)) if is_module else _loss_function(loss)
    if loss_name is None:
        return f"no native loss for {getattr(loss, '__name__', type(loss).__name__)}"
    update = _OPTIMIZERS.get(type(optimizer))
    if update is None:
        return f"no native update for {type(optimizer).__name__}"
    if clears_by_itself(step.model):
        return "the model has a zero_grad of its own"
    chain = linear_chain(step.model)
    if isinstance(chain, str):
        return f"the model is no chain of linear layers: {chain}"
    try:
        return StepPlan(step, chain, loss_name, update._op)
    except Refusal as refusal:
        return str(refusal)


def clears_by_itself(model: torch.nn.Module) -> bool:
    """Whether `model.zero_grad()` does something else than what it does in torch."""
    return "zero_grad" in model.__dict__ or type(model).zero_grad is not _torch_zero_grad


def uses_adam(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is Adam or AdamW, and not a class of somebody's own."""
    update = _OPTIMIZERS.get(type(optimizer))
    return update is not None and update._op == "adam"


def _loss_function(loss: Loss) -> str | None:
    try:
        return _LOSS_FUNCTIONS.get(loss)
    except TypeError:  # not hashable
        return None
