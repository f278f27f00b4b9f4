"""What a training step needs to know about model, loss and optimizer to run as one native call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _dispatch, _losses, _replaced, _torch_internals, nn, optim
from fastnn._dispatch import Unsupported, refuse
from fastnn.capture.watch import watch_globals, watch_module, watch_optimizer, watch_tables
from fastnn.ops.cross_entropy import REDUCTIONS, cross_entropy
from fastnn.optim.native import NativeOptimizer, match_layout, update_name
from fastnn.step.chain import LinearChain, linear_chain
from fastnn.step.graphs import StepGraphs
from fastnn.step.parameters import clears_by_itself
from fastnn.step.refused import Refused
from fastnn.step.spec import StepSpec

_losses.add_twin(torch.nn.CrossEntropyLoss, nn.CrossEntropyLoss)
_losses.add_twin(F.cross_entropy, cross_entropy)
_NATIVE_LOSSES = ", ".join(kind.module.__name__ for kind in _losses.KINDS.values())
# The native update of each optimizer, fastnn's or torch's.
_OPTIMIZERS: dict[type, type[NativeOptimizer]] = {
    kind: ours
    for ours in (optim.Adam, optim.AdamW, optim.SGD, optim.RMSprop, optim.Adagrad)
    for kind in (ours, _replaced.torchs_class(ours))
}


class LossOptions(NamedTuple):
    """What a native loss computes; options that a loss does not have keep these defaults.

    csrc/bindings/train_step_batch.cpp reads them by position.

    Attributes:
        loss: the name of torch's function.
        reduction: one of `REDUCTIONS`.
        ignore_index: of the class indices.
        label_smoothing: of the cross-entropy.
        z_loss: of fastnn's cross-entropy.
        threshold: beta of the smooth L1 loss, delta of the Huber loss.
        weight: of the classes, or None.
        pos_weight: of the positive answers in the binary cross-entropy, or None.
    """

    loss: str
    reduction: int
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    threshold: float = 1.0
    weight: Tensor | None = None
    pos_weight: Tensor | None = None

    @property
    def settings(self) -> tuple[str | float, ...]:
        """All but the tensors, for which `==` does not return a bool."""
        return self[:-2]


# Avoids the Python function behind LossOptions(...), which would take 0.1 us of each step.
_as_options: Callable[[tuple[Any, ...]], LossOptions] = partial(tuple.__new__, LossOptions)


class StepPlan:
    """A step that can run natively as long as `holds`.

    Attributes:
        spec: of the step.
        native: the compiled module's part, which reads and checks the tensors of each call.
        chain: the layers.
        tables: the parameters of each layer, by their names in it.
        last: those of the last layer, whose dtype the loss has.
        unused: parameters of the model that no layer of the chain has.
        update: fastnn's optimizer class whose native update is used.
        loss_like: a tensor like the loss of the last step; `torch.empty_like` of it takes half of the
            microsecond that `new_empty` does.
        graphs: CUDA graphs that have captured the step.
        refused: why the last native call has done nothing, or None if it took its steps.
    """

    refused: Refused | None = None

    def __init__(
        self, spec: StepSpec, chain: LinearChain, loss_name: str, update: type[NativeOptimizer]
    ) -> None:
        self.spec = spec
        self.native = _dispatch.cpu.ChainStep(
            [(module.__dict__[_torch_internals.PARAMETERS], activation) for module, activation in chain],
            update_name(update),
            chain.flatten,
            spec.max_norm,
            spec.keep_grad,
            spec.mean,
            spec.std,
            match_layout,
            _torch_internals.on_accumulator,
        )
        self.tables = [module.__dict__[_torch_internals.PARAMETERS] for module, _ in chain]
        self.last = self.tables[-1]
        self.update = update
        self.loss_like = torch.empty((), device="cpu")
        self.graphs = StepGraphs()
        self._loss_name = loss_name
        self._plain_options = {name: LossOptions(loss_name, number) for name, number in REDUCTIONS.items()}
        self._loss_module = spec.loss if isinstance(spec.loss, torch.nn.Module) else None
        self.chain = chain
        self._watch = _dispatch.cpu.Watch()
        watch_globals(self._watch)
        _replaced.classes.add_to(self._watch)
        _replaced.losses.add_to(self._watch)
        chain.watch(self._watch)
        if self._loss_module is not None:
            watch_module(self._watch, self._loss_module)
        watch_optimizer(self._watch, spec.optimizer)
        watch_tables(self._watch, spec.model)
        self._watch.absent(spec.model.__dict__, "zero_grad")
        self._watch.class_item(type(spec.model), "zero_grad", type(spec.model).zero_grad)
        chained = {id(p) for table in self.tables for p in table.values()}
        self.unused = [p for p in spec.model.parameters() if id(p) not in chained]

    def holds(self) -> bool:
        """Whether model, loss and optimizer are unchanged and unobserved."""
        unchanged: bool = self._watch.unchanged()
        return unchanged

    def loss_options(self) -> LossOptions:
        """The options of the loss as they are now; raises `Unsupported` if they are not covered."""
        module, loss = self._loss_module, self._loss_name
        if module is None:
            return self._plain_options["mean"]
        try:
            return self._module_options(module, loss)
        except (KeyError, TypeError) as error:  # an option is missing or of another type
            raise Unsupported(f"an option of the loss: {error}") from None

    def _module_options(self, module: torch.nn.Module, loss: str) -> LossOptions:
        options = module.__dict__
        plain = self._plain_options.get(options["reduction"])
        if plain is None:
            raise Unsupported(f"reduction={options['reduction']!r}")
        kind = _losses.KINDS[loss]
        if kind.takes_classes or loss == "binary_cross_entropy_with_logits":
            buffers = module.__dict__[_torch_internals.BUFFERS]
            if "weight" not in buffers:
                raise Unsupported("the class weights are not a buffer")
            if loss == "binary_cross_entropy_with_logits":
                if "pos_weight" not in buffers:
                    raise Unsupported("pos_weight is not a buffer")
                return plain._replace(weight=buffers["weight"], pos_weight=buffers["pos_weight"])
            ignore_index = options["ignore_index"]
            smoothing = 0.0 if loss == "nll_loss" else options["label_smoothing"]
            if type(ignore_index) is not int or not -(2**63) <= ignore_index < 2**63:
                raise Unsupported(f"ignore_index={ignore_index!r}")
            if not isinstance(smoothing, (int, float)) or not 0.0 <= smoothing <= 1.0:
                raise Unsupported(f"label_smoothing={smoothing}")
            z_loss = options.get("z_loss", 0.0)
            return _as_options(
                (loss, plain.reduction, ignore_index, smoothing, z_loss, 1.0, buffers["weight"], None)
            )
        if kind.threshold is not None:
            threshold = options[kind.threshold]
            positive = isinstance(threshold, (int, float)) and threshold >= 0
            if not positive or (threshold == 0 and loss == "huber_loss"):
                raise Unsupported(f"{kind.threshold}={threshold!r}")
            return plain._replace(threshold=threshold)
        return plain


def make_plan(spec: StepSpec) -> StepPlan:
    """The plan for `spec`; raises `Unsupported` if there is none."""
    refuse(_replaced.replaced_class() or _replaced.losses.replaced())
    loss, optimizer = spec.loss, spec.optimizer
    loss_name = _losses.name_of(loss)
    given = getattr(loss, "__name__", type(loss).__name__)
    if loss_name is None:
        raise Unsupported(
            f"no native loss for {given}: native are {_NATIVE_LOSSES} with their options, but none of their "
            "subclasses, and torch's functions of the same names"
        )
    update = _OPTIMIZERS.get(type(optimizer))
    if update is None:
        raise Unsupported(f"no native update for {type(optimizer).__name__}")
    if clears_by_itself(spec.model):
        raise Unsupported("the model has its own zero_grad")
    try:
        chain = linear_chain(spec.model)
    except Unsupported as refusal:
        raise Unsupported(f"the model is not a chain of linear layers: {refusal}") from None
    if chain.log_softmax != (loss_name == "nll_loss"):
        if chain.log_softmax:
            raise Unsupported(f"after log_softmax only NLLLoss is native, not {given}")
        raise Unsupported(f"{given} is native only if the model ends in log_softmax, and this one does not")
    return StepPlan(spec, chain, loss_name, update)
