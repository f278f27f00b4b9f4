"""A whole training step of an MLP: forward, cross-entropy, backward, Adam.

Compulsory: 6 flops for each weight and sample, less the 2 for the gradient of the network's input, which
nobody asks for; bias, loss and update are left out of the count.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastnn
import fastnn.nn
import fastnn.optim

from ..case import OURS, Call, Case, Foreign, Workload
from ..peers import compiled

# Training on one batch would soon fit it exactly, and gradients of nothing end in subnormal moments, which
# the processor handles in a slow path: not what a training run is like.
_BATCHES = 16

# One native call a step; a build without it is measured in eager mode, and says so.
_TRAIN_STEP: Any = getattr(fastnn, "TrainStep", None)
EAGER = "fastnn eager"

_Batches = list[tuple[Tensor, Tensor]]


def torch_mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def eager_step(
    model: nn.Module, loss_of: nn.Module, optimizer: torch.optim.Optimizer
) -> Callable[[Tensor, Tensor], Tensor]:
    """The step as it is usually written; returns the loss, detached."""

    def step(x: Tensor, target: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = loss_of(model(x), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _eager(model: nn.Module, loss_of: nn.Module, optimizer: torch.optim.Optimizer, batches: _Batches) -> Call:
    step = eager_step(model, loss_of, optimizer)
    forever = itertools.cycle(batches)
    return lambda: step(*next(forever))


def _one_call(
    model: nn.Module, loss_of: nn.Module, optimizer: torch.optim.Optimizer, batches: _Batches
) -> Call:
    step = _TRAIN_STEP(model, loss_of, optimizer)
    forever = itertools.cycle(batches)
    return lambda: step(*next(forever))


def _build(widths: Sequence[int], batch: int, peers: bool) -> Workload:
    reference = torch_mlp(widths)
    values = [parameter.detach() for parameter in reference.parameters()]
    batches = [(torch.randn(batch, widths[0]), torch.randint(widths[-1], (batch,))) for _ in range(_BATCHES)]

    def make(
        stepper: Callable[..., Call],
        model: nn.Module,
        loss_of: nn.Module,
        adam: Callable[..., torch.optim.Optimizer],
    ) -> Call:
        model.load_state_dict(reference.state_dict())
        return stepper(model, loss_of, adam(model.parameters()), batches)

    def ours(stepper: Callable[..., Call]) -> Call:
        return make(stepper, fastnn.nn.MLP(list(widths)), fastnn.nn.CrossEntropyLoss(), fastnn.optim.Adam)

    def theirs(adam: Callable[..., torch.optim.Optimizer]) -> Call:
        return make(_eager, torch_mlp(widths), nn.CrossEntropyLoss(), adam)

    calls = {OURS: ours(_eager)} if _TRAIN_STEP is None else {OURS: ours(_one_call), EAGER: ours(_eager)}
    calls["torch"] = theirs(torch.optim.Adam)
    calls["torch fused"] = theirs(partial(torch.optim.Adam, fused=True))

    def compile_it() -> Call:
        model = torch_mlp(widths)
        model.load_state_dict(reference.state_dict())
        step = compiled.training_step(model)
        forever = itertools.cycle(batches)
        return lambda: step(*next(forever))

    inputs, targets = zip(*batches, strict=True)
    foreign = Foreign("training_step", {"values": values, "inputs": inputs, "targets": targets})
    # Adam's first steps divide each gradient by its own size, so that rounding in the smallest ones counts.
    return Workload(
        calls,
        tolerance=1e-4,
        checked_calls=5,
        optional={compiled.NAME: compile_it} if peers else {},
        foreign=foreign,
        learners=frozenset({"scikit-learn"}),
    )


def flops(widths: Sequence[int], batch: int) -> int:
    """Those of one step."""
    products = [wide * narrow for wide, narrow in itertools.pairwise(widths)]
    return batch * (6 * sum(products) - 2 * products[0])


def traffic(widths: Sequence[int], batch: int) -> int:
    """Batch read, parameters and both moments read and written; activations may stay in a cache."""
    parameters = sum((wide + 1) * narrow for wide, narrow in itertools.pairwise(widths))
    return 4 * (batch * widths[0] + 6 * parameters) + 8 * batch


_NOTE = f"{OURS} is " + ("eager mode: no TrainStep in this version" if _TRAIN_STEP is None else "TrainStep")


def _case(
    widths: Sequence[int], batch: int, *, op: str, group: str, at: int = 0, quick: bool = False
) -> Case:
    return Case(
        op,
        f"{'-'.join(map(str, widths))}, batch {batch}",
        partial(_build, widths, batch, group == "ops"),
        flops=flops(widths, batch),
        traffic=traffic(widths, batch),
        note=_NOTE,
        quick=quick,
        group=group,
        at=at,
    )


CASES = [
    _case(widths, batch, op="training step", group="ops", quick=quick)
    for widths, batch, quick in (
        ((784, 28, 10), 64, True),
        ((784, 128, 10), 64, True),
        ((17, 64, 64, 6), 32, True),
        ((784, 512, 10), 128, False),
        ((784, 1024, 1024, 10), 512, False),
    )
]

# One thing varies at a time; torch.compile, which compiles anew for each shape, stays out.
_SWEEPS: dict[str, list[tuple[int, tuple[int, ...], int]]] = {
    "batch": [(2**i, (784, 128, 10), 2**i) for i in range(4, 11)],
    "width": [(2**i, (784, 2**i, 10), 64) for i in range(5, 11)],
    "depth": [(i, (784, *[128] * i, 10), 64) for i in range(1, 7)],
}

CASES += [
    _case(widths, batch, op=f"step over {what}", group="sweep", at=value, quick=i == 0)
    for what, points in _SWEEPS.items()
    for i, (value, widths, batch) in enumerate(points)
]
