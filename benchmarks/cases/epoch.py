"""An epoch of training steps of an MLP on a data set in memory: batches gathered in a new order, forward,
cross-entropy, backward, Adam.

Compulsory: that of its steps (`step`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

import fastnn
import fastnn.nn
import fastnn.optim

from ..case import OURS, Call, Case, Foreign, Workload
from ..peers import compiled
from .step import eager_step, flops, torch_mlp, traffic

_STEPS = 64
# Orders in turn: always the same batches would soon be fitted exactly (`step`).
_ORDERS = 4

STEP_BY_STEP = "fastnn TrainStep"

_Step = Callable[[Tensor, Tensor], Tensor]


def _build(widths: Sequence[int], batch: int) -> Workload:
    x, target = torch.randn(_STEPS * batch, widths[0]), torch.randint(widths[-1], (_STEPS * batch,))
    orders = [torch.randperm(len(x)) for _ in range(_ORDERS)]
    reference = torch_mlp(widths)
    values = [parameter.detach() for parameter in reference.parameters()]

    def started(model: nn.Module) -> nn.Module:
        model.load_state_dict(reference.state_dict())
        return model

    def loop(step: _Step) -> Call:
        forever = itertools.cycle(orders)

        def epoch() -> Tensor:
            batches = next(forever).split(batch)
            return torch.stack([step(x.index_select(0, b), target.index_select(0, b)) for b in batches])

        return epoch

    def ours() -> fastnn.TrainStep:
        model = started(fastnn.nn.MLP(list(widths)))
        optimizer = fastnn.optim.Adam(model.parameters())
        return fastnn.TrainStep(model, fastnn.nn.CrossEntropyLoss(), optimizer)

    def theirs(adam: Callable[..., torch.optim.Optimizer]) -> Call:
        model = started(torch_mlp(widths))
        return loop(eager_step(model, nn.CrossEntropyLoss(), adam(model.parameters())))

    whole, forever = ours(), itertools.cycle(orders)
    return Workload(
        {
            OURS: lambda: whole.epoch(x, target, batch, next(forever)),
            STEP_BY_STEP: loop(ours()),
            "torch": theirs(torch.optim.Adam),
            "torch fused": theirs(partial(torch.optim.Adam, fused=True)),
        },
        # Adam divides each gradient by its own size, so that rounding in the smallest ones counts.
        tolerance=1e-3,
        optional={
            compiled.NAME: lambda: loop(compiled.training_step(started(torch_mlp(widths)))),
        },
        foreign=Foreign(
            "training_epoch",
            {
                "values": values,
                "x": x,
                "target": target,
                "orders": [order.view(_STEPS, batch) for order in orders],
            },
        ),
    )


CASES = [
    Case(
        f"epoch of {_STEPS} steps",
        f"{'-'.join(map(str, widths))}, batch {batch}",
        partial(_build, widths, batch),
        flops=_STEPS * flops(widths, batch),
        traffic=_STEPS * traffic(widths, batch),
        note=f"{OURS} is TrainStep.epoch",
        quick=quick,
    )
    for widths, batch, quick in (
        ((17, 64, 64, 6), 32, True),
        ((784, 28, 10), 64, False),
        ((784, 128, 10), 64, False),
    )
]
