"""Shared by the tests of TrainStep."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastnn

ACTIVATIONS = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
}

Optimizer = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizer] = {
    "adam": lambda p: fastnn.optim.Adam(p, lr=1e-2),
    "adam-l2": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-3),
    "adam-amsgrad": lambda p: fastnn.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: fastnn.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adam-maximize": lambda p: torch.optim.AdamW(p, lr=1e-2, maximize=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-momentum": lambda p: fastnn.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2),
    "rmsprop-momentum": lambda p: fastnn.optim.RMSprop(
        p, lr=1e-2, alpha=0.9, momentum=0.9, weight_decay=0.01
    ),
    "rmsprop-centered": lambda p: torch.optim.RMSprop(p, lr=1e-2, alpha=0.3, eps=1e-3, centered=True),
    "rmsprop-all": lambda p: fastnn.optim.RMSprop(p, lr=1e-2, momentum=0.5, centered=True, maximize=True),
    "adagrad": lambda p: fastnn.optim.Adagrad(p, lr=0.1),
    "adagrad-decay": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1, weight_decay=0.01),
    "adagrad-start": lambda p: fastnn.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.5, eps=1e-3),
    "adagrad-maximize": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.2, maximize=True),
}


def chain(
    sizes: Sequence[int],
    activation: str = "relu",
    *,
    last: bool = False,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    modules: list[nn.Module] = []
    for k, n in pairwise(sizes):
        modules += [nn.Linear(k, n, bias=bias, dtype=dtype), ACTIVATIONS[activation]()]
    return nn.Sequential(*(modules if last else modules[:-1]))


def eager_step(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    *batch: Tensor,
    max_norm: float | None = None,
) -> Tensor:
    *inputs, y = batch
    optimizer.zero_grad()
    value = loss(model(*inputs), y)
    value.backward()
    if max_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return value.detach()


def native(step: fastnn.TrainStep, *batch: Tensor) -> Tensor:
    """Take a step that must run natively."""
    seen = fastnn.explain(step, *batch)
    assert [d for d in seen.decisions if d.op == "train_step"] == [("train_step", None)]
    result: Tensor = seen.result
    return result


def reason(step: fastnn.TrainStep, *batch: Any) -> str:
    """Why the kernel of chains did not take a step, or another native one."""
    decisions = fastnn.explain(step, *batch).decisions
    assert any(d.op == "train_step" and d.reason is not None for d in decisions)
    why = next(d.reason for d in decisions if d.op in ("chain_step", "train_step"))
    assert why is not None
    return why


def recorded(step: fastnn.TrainStep, *batch: Any) -> fastnn.TrainStep:
    """The step, after the calls that precede a recording: the next one is native."""
    for _ in range(3):
        step(*batch)
    return step


def started(model: nn.Module, loss: Any, make: Optimizer, *batch: Tensor, **options: Any) -> fastnn.TrainStep:
    """A step whose optimizer has its state."""
    step = fastnn.TrainStep(model, loss, make(model.parameters()), **options)
    step(*batch)
    return step


def accumulator(p: Tensor) -> Any:
    return p.view_as(p).grad_fn.next_functions[0][0]  # type: ignore[union-attr]


class Kept:
    """A hook on a gradient accumulator, which lives as long as it is referenced."""

    def __init__(self, node: Any, register: str, hook: Callable[..., None]) -> None:
        self.node = node
        self.handle = getattr(node, register)(hook)

    def remove(self) -> None:
        self.handle.remove()


def classes_of(m: int, n: int) -> Tensor:
    return torch.randint(n, (m,))


class LossCase(NamedTuple):
    """A loss that runs natively.

    Attributes:
        make: the module for `n` outputs.
        target: for `m` samples of `n` outputs.
        log_softmax: whether the model ends in that.
    """

    make: Callable[..., nn.Module]
    target: Callable[[int, int], Tensor]
    log_softmax: bool = False


def _probabilities(m: int, n: int) -> Tensor:
    return torch.rand(m, n, dtype=torch.float64).softmax(1)


def _answers(m: int, n: int) -> Tensor:
    """Targets of 0, 1 and in between."""
    return torch.rand(m, n, dtype=torch.float64).mul_(3).sub_(1).clamp_(0, 1)


def _weights(n: int) -> Tensor:
    return torch.linspace(0.5, 2, n, dtype=torch.float64)


# Values and weights are float64.
ELEMENTWISE: dict[str, LossCase] = {
    name: LossCase(make, lambda m, n: torch.randn(m, n, dtype=torch.float64))
    for name, make in {
        "mse": lambda n, **options: nn.MSELoss(**options),
        "l1": lambda n, **options: nn.L1Loss(**options),
        "smooth-l1": lambda n, **options: nn.SmoothL1Loss(beta=0.7, **options),
        "smooth-l1-0": lambda n, **options: nn.SmoothL1Loss(beta=0.0, **options),
        "huber": lambda n, **options: nn.HuberLoss(delta=0.7, **options),
    }.items()
} | {
    name: LossCase(make, _answers)
    for name, make in {
        "bce": lambda n, **options: nn.BCEWithLogitsLoss(**options),
        "bce-weight": lambda n, **options: nn.BCEWithLogitsLoss(_weights(n), **options),
        "bce-positive": lambda n, **options: nn.BCEWithLogitsLoss(pos_weight=3 * _weights(n), **options),
        "bce-both": lambda n, **options: nn.BCEWithLogitsLoss(
            torch.tensor(0.3, dtype=torch.float64),
            pos_weight=torch.tensor([2.0], dtype=torch.float64),
            **options,
        ),
    }.items()
}
LOSSES: dict[str, LossCase] = ELEMENTWISE | {
    "nll": LossCase(lambda n, **options: nn.NLLLoss(**options), classes_of, True),
    "nll-options": LossCase(
        lambda n, **options: nn.NLLLoss(_weights(n), ignore_index=1, **options), classes_of, True
    ),
    "probabilities": LossCase(lambda n, **options: nn.CrossEntropyLoss(**options), _probabilities),
    "probabilities-options": LossCase(
        lambda n, **options: nn.CrossEntropyLoss(_weights(n), label_smoothing=0.2, **options), _probabilities
    ),
}


def model_for(
    case: LossCase, sizes: Sequence[int], dtype: torch.dtype = torch.float64, activation: str = "tanh"
) -> nn.Sequential:
    model = chain(sizes, activation, dtype=dtype)
    return model.append(nn.LogSoftmax(dim=-1)) if case.log_softmax else model


def target_for(case: LossCase, m: int, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    target = case.target(m, n)
    return target.to(dtype) if target.is_floating_point() else target


def _taken(step: fastnn.TrainStep, *batch: Tensor) -> Tensor:
    return step(*batch)


def compare(
    model: nn.Module,
    loss: Any,
    make: Optimizer,
    batches: Sequence[tuple[Tensor, ...]],
    tolerance: float,
    *,
    equal_nan: bool = False,
    recorded: bool = False,
    **options: Any,
) -> None:
    """Train a model natively and its copy with torch: losses, parameters and states must agree.

    `recorded`: the model is not a chain, and each batch is repeated until its step is native.
    """
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance, equal_nan=equal_nan)
    twin = copy.deepcopy(model)
    theirs = make(twin.parameters())
    step = fastnn.TrainStep(model, loss, make(model.parameters()), **options)
    for batch, take in [(b, t) for b in batches for t in (*[_taken] * 3 * recorded, native)]:
        ours = take(step, *batch)
        with fastnn.disabled():  # fastnn's optimizers too update with torch's functions
            expected = eager_step(twin, loss, theirs, *batch, max_norm=options.get("max_norm"))
        assert ours.shape == ()
        assert not ours.requires_grad
        close(ours, expected)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            close(p, q)
            if options.get("keep_grad"):
                close(p.grad, q.grad)
            else:
                assert p.grad is None
            state = step.optimizer.state[p]
            assert state.keys() == theirs.state[q].keys()
            for key, value in theirs.state[q].items():
                if isinstance(value, Tensor):
                    close(state[key], value)


# In float64 both paths agree to rounding, which Adam amplifies if a gradient is small compared with eps.
TOLERANCE = 1e-9
