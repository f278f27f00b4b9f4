"""The CUDA kernel that takes all steps of an epoch: where it may run, and the call."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastnn import _dispatch, _torch_internals
from fastnn._dispatch import Unsupported, refuse
from fastnn.capture import cuda_graph
from fastnn.capture.watch import present_obstacle
from fastnn.ops.cross_entropy import REDUCTIONS
from fastnn.optim.native import make_state, update_name
from fastnn.step.parameters import drop_gradients
from fastnn.step.plan import LossOptions, StepPlan


class _NotTaken(NamedTuple):
    """Steps counted by the host but skipped by the device: an index of their epoch was out of range."""

    counts: list[Tensor]  # on the host, that include them
    steps: Tensor  # int64, one element, on the device: the kernel adds them up


_not_taken: weakref.WeakKeyDictionary[torch.optim.Optimizer, _NotTaken] = weakref.WeakKeyDictionary()


def train_on_chip(
    plan: StepPlan,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    permutation: Tensor,
    rates: Tensor | None,
) -> Tensor:
    """The losses of the epoch; raises `Unsupported`, with nothing changed, if the kernel cannot run.

    `rates` are those of `TrainStep.epoch`, float64 on the CPU.
    """
    spec = plan.spec
    optimizer = spec.optimizer
    batch = min(batch_size, len(permutation))
    params = _weights_and_biases(plan)
    ignore_index = _check_step(plan).ignore_index
    _check_data(plan, params, images, labels)
    kernels = _dispatch.native(images)
    refuse(kernels.why_no_epoch(params[0], params[2], batch, 0) or None)
    states = _states(plan, params)

    # What the kernel is given for a parameter: value, m, v, the step count if it is on the device, and its
    # former value otherwise.
    given: list[tuple[Any, ...]] = []
    for p, state in zip(params, states, strict=True):
        count = state["step"]
        on_device = count.device == images.device
        moments = state["exp_avg"], state["exp_avg_sq"]
        given.append((p, *moments, count if on_device else None, 0.0 if on_device else float(count)))
    steps = -(-len(permutation) // batch)
    losses = params[0].new_empty(steps)
    scratch = images.new_empty(kernels.epoch_scratch_bytes(steps))
    counts = [state["step"] for state in states if state["step"].device != images.device]
    not_taken = _not_taken_of(optimizer, counts, images.device) if counts else None
    kernels.on_bad_index(_take_back)
    group = optimizer.param_groups[0]
    lr = (group["lr"], None) if rates is None else (0.0, rates.to(images.device))
    drop_gradients(spec.model.parameters())
    kernels.train_epoch(
        *(images.view(len(images), -1), labels, permutation.contiguous(), batch),
        *(1 / (255 * spec.std), -spec.mean / spec.std, ignore_index, given),
        *(*lr, *group["betas"], group["eps"], group["weight_decay"], _is_decoupled(optimizer)),
        *(not_taken, losses, scratch, 0),
    )
    for values in given:
        increment_version([t for t in values[:4] if t is not None])
    for count in counts:
        count.add_(steps)
    _torch_internals.note_step(optimizer)
    if _dispatch.check_at_once:
        kernels.raise_bad_index(images)
    return losses


def _not_taken_of(optimizer: torch.optim.Optimizer, counts: list[Tensor], device: torch.device) -> Tensor:
    """Where the kernel counts the steps that it skips, as long as the optimizer has these counts."""
    known = _not_taken.get(optimizer)
    if known and known.steps.device == device and [id(t) for t in known.counts] == [id(t) for t in counts]:
        return known.steps
    _not_taken[optimizer] = _NotTaken(counts, torch.zeros(1, dtype=torch.int64, device=device))
    return _not_taken[optimizer].steps


def _take_back() -> None:
    """Subtract skipped steps from the counts; called when an index error is about to be raised."""
    for counts, not_taken in list(_not_taken.values()):
        if not_taken.is_cuda:
            if cuda_graph.why_not_now(not_taken.device) is not None:
                continue  # waiting is not allowed now; kept for the next error
            with cuda_graph.capturing:
                torch.cuda.synchronize(not_taken.device)
        steps = int(not_taken)
        for count in counts if steps else []:
            count.sub_(steps)
        not_taken.zero_()


def _refuse_if(condition: object, why: str) -> None:
    if condition:
        raise Unsupported(why)


def _weights_and_biases(plan: StepPlan) -> list[Tensor]:
    """W1, b1, W2 and b2."""
    activations = [activation for _, activation in plan.chain]
    fits = activations == ["relu", None]
    _refuse_if(not fits, "the model is not two linear layers with ReLU between them")
    params = [
        module.__dict__[_torch_internals.PARAMETERS].get(name)
        for module, _ in plan.chain
        for name in ("weight", "bias")
    ]
    _refuse_if(any(p is None for p in params), "a layer has no bias")
    return [p for p in params if p is not None]


def _check_step(plan: StepPlan) -> LossOptions:
    """The options of the loss."""
    _refuse_if(plan.spec.max_norm is not None, "max_norm is set")
    _refuse_if(plan.spec.keep_grad, "keep_grad is set")
    refuse(present_obstacle())
    options = plan.loss_options()
    plain = LossOptions("cross_entropy", REDUCTIONS["mean"], options.ignore_index)
    same = options.weight is None and options.settings == plain.settings
    _refuse_if(not same, "the loss is not the plain mean of cross-entropy")
    optimizer = plan.spec.optimizer
    _refuse_if(update_name(plan.update) != "adam", f"no epoch kernel for {type(optimizer).__name__}")
    groups = optimizer.param_groups
    _refuse_if(len(groups) != 1, "there are several parameter groups")
    for flag in ("amsgrad", "maximize", "differentiable"):
        _refuse_if(groups[0][flag], f"{flag} is set")
    numbers = (groups[0]["lr"], *groups[0]["betas"])
    _refuse_if(any(isinstance(number, Tensor) for number in numbers), "lr or betas is a tensor")
    return options


def _check_data(plan: StepPlan, params: list[Tensor], images: Tensor, labels: Tensor) -> None:
    refuse(_dispatch.torch_reason(*params, cuda="train_epoch"))
    for p in params:
        _refuse_if(p.dtype is not torch.float32, f"parameters are {p.dtype}, not float32")
        _refuse_if(not p.is_contiguous(), "a parameter is not contiguous")
        _refuse_if(not p.requires_grad, "a parameter is frozen")
        _refuse_if(_torch_internals.on_leaf(p), "a parameter has a hook")
        _refuse_if(p.device != images.device, "devices are mixed")
    _refuse_if(images.dtype is not torch.uint8, f"the images are {images.dtype}, not uint8")
    _refuse_if(images.dim() != 2 and not plan.chain.flatten, "the images are not a matrix")
    _refuse_if(images[0].numel() != params[0].shape[1], "images and model differ in their number of features")
    plain = labels.dtype is torch.int64 and labels.dim() == 1
    _refuse_if(not plain, "the labels are not a vector of int64")
    contiguous = images.is_contiguous() and labels.is_contiguous()
    _refuse_if(not contiguous, "images or labels are not contiguous")


def _states(plan: StepPlan, params: list[Tensor]) -> list[dict[str, Any]]:
    """Adam's state of each parameter, created if missing."""
    optimizer = plan.spec.optimizer
    own = optimizer.param_groups[0]["params"]
    same = len(own) == len(params) and {id(p) for p in own} == {id(p) for p in params}
    _refuse_if(not same, "the optimizer has other parameters than the model")
    known = {p: state for p in params if (state := optimizer.state.get(p))}
    _check_states(params, known)
    if len(known) < len(params):  # and nothing else prevents it
        make_state(optimizer, plan.update)
        known = {p: optimizer.state[p] for p in params}
        _check_states(params, known)
    return [known[p] for p in params]


def _check_states(params: list[Tensor], states: dict[Tensor, dict[str, Any]]) -> None:
    tensors = list(params)
    for p, state in states.items():
        for key in ("exp_avg", "exp_avg_sq"):
            t = state[key]
            alike = t.shape == p.shape and t.dtype is p.dtype and t.device == p.device and t.is_contiguous()
            _refuse_if(not alike, f"{key} is not like its parameter")
            tensors.append(t)
        count = state["step"]
        _refuse_if(not isinstance(count, Tensor) or count.dtype is not torch.float32, "step is not float32")
    _refuse_if(len({t.data_ptr() for t in tensors}) != len(tensors), "parameters or states share memory")


def _is_decoupled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the weight decay is AdamW's."""
    decoupled = optimizer.param_groups[0].get("decoupled_weight_decay")
    return isinstance(optimizer, torch.optim.AdamW) if decoupled is None else bool(decoupled)
