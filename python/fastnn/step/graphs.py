"""A training step on a CUDA device, captured in a graph: when that is done, what must stay fixed, and its
replay.

The first calls with a kind of batch are taken eagerly; they are normal steps, and load and set up what a step
needs. Then the step is captured: `cuda_graph.capture` records it without taking it. From then on a step is a
copy of the batch to where the graph reads it, and a replay.

A graph repeats the same kernels on the same addresses. Before each replay it is checked whether the eager
step would run them too: `StepPlan.holds` for model and loss, `_Held.holds` for tensors and the optimizer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastnn import _dispatch, _torch_internals
from fastnn._dispatch import Unsupported, refuse
from fastnn.capture import cuda_graph
from fastnn.capture.watch import present_obstacle
from fastnn.nn.utils import clip_grad_norm_
from fastnn.optim.native import update_name
from fastnn.step.graph_update import COVERED, GraphUpdate
from fastnn.step.parameters import drop_gradients
from fastnn.step.refused import WarmUp

if TYPE_CHECKING:
    from fastnn.step.plan import LossOptions, StepPlan

# Calls with a kind of batch that run eagerly before it is captured: a kind that occurs once or twice is not
# worth a capture, which takes as long as some tens of steps.
CAPTURE_AFTER = 2
# Kinds of batches that are captured: that of an epoch, its last smaller one, and others. Each graph keeps the
# memory of its activations.
MOST_GRAPHS = 4
# Each capture that becomes invalid doubles the calls before the next one, up to this.
_LONGEST_WAIT = 64
_MOST_SEEN = 64  # kinds of batches that are counted

# Losses that have been tested in a graph, by their names in `LossOptions`.
_LOSSES = ("cross_entropy", "mse_loss")
_NAMES = ("weight", "bias")  # of a layer's parameters


class StepGraphs:
    """The graphs of a step, as long as its plan holds."""

    def __init__(self) -> None:
        self._wait = CAPTURE_AFTER
        self._seen: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, _StepGraph] = {}
        self._failed: dict[Hashable, str] = {}  # why there can never be one
        self._short: dict[Hashable, tuple[int, str]] = {}  # lacking memory: calls before a retry, and why
        self._held: _Held | None = None
        self._refusal: str | None = None  # what prevented it the last time

    def take(self, plan: StepPlan, input: Any, target: Any) -> Tensor:
        """Take the step by a replay; raises `Unsupported`, with nothing changed, if that is impossible."""
        _check(plan, input, target)
        options = plan.loss_options()
        if options.loss not in _LOSSES:
            raise Unsupported(f"a step with {options.loss} is not captured")
        if self._held is not None and not self._held.holds(options):
            self._forget()
        kind = _kind(input), _kind(target)
        graph = self._graphs.get(kind)
        if graph is None:
            graph = self._find(plan, options, kind, input, target)
        return graph.take(input, target)

    def _forget(self) -> None:
        self._graphs.clear()
        self._failed.clear()
        self._seen.clear()
        self._short.clear()
        self._held = None
        self._wait = min(2 * self._wait, _LONGEST_WAIT)

    def _find(
        self,
        plan: StepPlan,
        options: LossOptions,
        kind: Hashable,
        input: Tensor,
        target: Tensor,
    ) -> _StepGraph:
        """The graph for a new kind of batch; raises `Unsupported` if there is none yet."""
        refuse(self._failed.get(kind))
        failed = cuda_graph.why_failed(input.device)
        if failed is not None:
            raise Unsupported(f"a capture has failed on {input.device}: {failed}")
        if len(self._graphs) + len(self._failed) >= MOST_GRAPHS:
            if self._failed:
                why = list(self._failed.values())[-1]
                raise Unsupported(f"captures of other kinds of batches have failed: {why}")
            raise Unsupported(f"{MOST_GRAPHS} other kinds of batches have been captured")
        seen = self._seen.get(kind, 0)
        wait, short = self._short.get(kind, (self._wait, None))
        if seen < wait:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
                self._short.clear()
            self._seen[kind] = seen + 1
            expected = WarmUp(f"a step is captured after {wait} calls with a batch of this kind")
            raise Unsupported(short or self._refusal or expected)
        self._refusal = None
        try:
            if self._held is None:
                self._held = _Held(plan, options)
            graph = _StepGraph(self._held, input, target)
        except Unsupported as refusal:
            self._forget()
            self._refusal = str(refusal)
            raise
        except IndexError:  # a class index of an earlier step, not reported until now
            raise
        except Exception as error:
            # The eager step raises its own error, if it has one.
            why = str(error).partition("\n")[0]
            if cuda_graph.lacks_memory(error):
                reason = f"a capture ran out of memory, the next one is after {2 * wait} such calls: {why}"
                self._seen[kind], self._short[kind] = 0, (2 * wait, reason)
            else:
                reason = self._failed[kind] = f"it cannot be captured: {why}"
            raise Unsupported(reason) from None
        self._short.pop(kind, None)
        self._graphs[kind] = graph
        return graph


def _kind(t: Tensor) -> Hashable:
    return t.shape, t.stride(), t.dtype


def _check(plan: StepPlan, input: Any, target: Any) -> None:
    """Raise `Unsupported` if no graph may be captured or replayed in this call."""
    optimizer = plan.spec.optimizer
    if update_name(plan.update) not in COVERED:
        raise Unsupported(f"no captured update for {type(optimizer).__name__}")
    if _dispatch.check_at_once:
        raise Unsupported("FASTNN_CHECK is set")
    if type(optimizer.param_groups) is not list:
        raise Unsupported("param_groups is not a list")
    refuse(present_obstacle())
    params = [p for table in plan.tables for name in _NAMES if (p := table.get(name)) is not None]
    if not params:
        raise Unsupported("the model has no parameters")
    refuse(_dispatch.torch_reason(params[0], cuda="train_step"))
    # The graph has the kernels of the update, not those that the optimizer itself would run.
    refuse(_dispatch.torch_reason(params[0], cuda=update_name(plan.update)))
    device = params[0].device
    for p in params:
        if _torch_internals.on_leaf(p):
            raise Unsupported("a parameter has a hook")
        if p.device != device:
            raise Unsupported("devices are mixed")
    for name, t in (("input", input), ("target", target)):
        if type(t) is not Tensor:
            raise Unsupported(f"the {name} is a {type(t).__name__}, not a plain tensor")
        if t.layout is not torch.strided or t.is_nested:
            raise Unsupported(f"the {name} is not strided")
        if t.device != device:
            raise Unsupported(f"the {name} is on {t.device}, the model on {device}")
        if t.requires_grad:
            raise Unsupported(f"the {name} requires grad")
        if t.numel() == 0:
            raise Unsupported("the batch is empty")
    refuse(cuda_graph.why_not_now(device))


class _Held:
    """What must stay fixed for all graphs of a step, besides what its plan watches.

    Raises `Unsupported` if there can be none.

    Attributes:
        spec: of the step.
        params: all of the model's.
        trained: those that get a gradient.
        update: the optimizer's part.
    """

    def __init__(self, plan: StepPlan, options: LossOptions) -> None:
        self.spec = plan.spec
        self._watch = _dispatch.cpu.Watch()
        self._tables = plan.tables
        layers: list[Tensor] = []
        for table in plan.tables:
            for name in _NAMES:
                p = table.get(name)
                if name in table:
                    self._watch.item(table, name, p)
                else:
                    self._watch.absent(table, name)
                if p is not None:
                    self._watch.attribute(p, "requires_grad", p.requires_grad)
                    layers.append(p)
        trained = {id(p) for p in layers if p.requires_grad}
        if not trained:
            raise Unsupported("all parameters are frozen")
        self.params = list(plan.spec.model.parameters())
        self.trained = [p for p in self.params if id(p) in trained]
        self.kernels = _dispatch.native(layers[0])
        self.update = GraphUpdate(plan.spec.optimizer, update_name(plan.update), self.trained, self.kernels)
        self.update.watch(self._watch)
        # Graphs know all tensors by address; the contents of parameters and class weights may be replaced by
        # a tensor of another shape, even at the same address.
        shaped = list(layers)
        self._options = options
        if options.weight is not None:
            if options.weight.requires_grad:
                raise Unsupported("the class weight requires grad")
            shaped.append(options.weight)
        self._tensors = shaped + self.update.memory
        self._addresses = [t.data_ptr() for t in self._tensors]
        self._shapes = [(t, t.shape, t.stride(), t.dtype) for t in shaped]
        self._device = layers[0].device
        self._arithmetic = cuda_graph.arithmetic()
        # On a single stream, replays and the memory of dropped graphs need no ordering beyond that of the
        # calls.
        self._stream = cuda_graph.current_stream(self._device)

    @contextlib.contextmanager
    def fresh_leaves(self) -> Iterator[list[Tensor]]:
        """Make the layers use new autograd leaves instead of the parameters; yields those of `trained`.

        torch ties a parameter to the stream on which a live autograd graph used it first, and makes gradients
        wait for that stream, which a capture of another stream refuses.
        """
        leaves = {id(p): torch.nn.Parameter(p.detach()) for p in self.trained}
        replaced = [
            (table, name, p)
            for table in self._tables
            for name in _NAMES
            if (p := table.get(name)) is not None and id(p) in leaves
        ]
        try:
            for table, name, p in replaced:
                table[name] = leaves[id(p)]
            yield [leaves[id(p)] for p in self.trained]
        finally:
            for table, name, p in replaced:
                table[name] = p

    def holds(self, options: LossOptions) -> bool:
        """Whether the eager step would do the same as when this was made, apart from numbers that are
        read."""
        return (
            self._watch.unchanged()
            and options.weight is self._options.weight
            and options.settings == self._options.settings
            and self._stream == cuda_graph.current_stream(self._device)
            and self._arithmetic == cuda_graph.arithmetic()
            and self.update.holds()
            and [t.data_ptr() for t in self._tensors] == self._addresses
            and all(
                t.dtype is dtype and t.shape == shape and t.stride() == strides
                for t, shape, strides, dtype in self._shapes
            )
        )


class _StepGraph:
    """The step on one kind of batch, captured."""

    def __init__(self, held: _Held, input: Tensor, target: Tensor) -> None:
        self._held = held
        self._input, self._target = torch.zeros_like(input), torch.zeros_like(target)
        held.update.refresh()
        skip = torch.ones(1, dtype=torch.float32, device=input.device)
        self._replay, (self._loss, self._grads) = cuda_graph.capture(
            input.device,
            partial(self._body, skip),
            held.kernels.raise_told_bad_index,
            self._body,
        )

    def _body(self, skip: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The step as `EagerStep` takes it; without effect if `skip`, read on the device, is 1.

        Gradients come from `torch.autograd.grad`: ``.grad`` may not be left in the graph's memory, where the
        next replay overwrites it.
        """
        held, spec = self._held, self._held.spec
        with torch.enable_grad(), held.fresh_leaves() as leaves:
            loss = spec.loss(spec.model(spec.normalised(self._input)), self._target)
            grads = list(torch.autograd.grad(loss, leaves))
        before = [p.grad for p in held.trained]
        try:
            for p, grad in zip(held.trained, grads, strict=True):
                p.grad = grad
            with torch.no_grad():
                if spec.max_norm is not None:
                    clip_grad_norm_(held.trained, spec.max_norm)
                held.update.run(skip)
        finally:
            for p, old in zip(held.trained, before, strict=True):
                p.grad = old
        return loss.detach(), grads if spec.keep_grad else []

    def take(self, input: Tensor, target: Tensor) -> Tensor:
        held = self._held
        held.kernels.raise_told_bad_index()
        drop_gradients(held.params)
        with torch.no_grad():
            self._input.copy_(input, non_blocking=True)
            self._target.copy_(target, non_blocking=True)
            held.update.refresh()
            self._replay()
            held.update.count_step()
            # The next replay overwrites what is in the graph's memory.
            loss = self._loss.clone()
            if self._grads:
                for p, grad in zip(held.trained, self._grads, strict=True):
                    p.grad = grad.clone()
        increment_version(held.update.written)
        _torch_internals.note_step(held.spec.optimizer)
        return loss
