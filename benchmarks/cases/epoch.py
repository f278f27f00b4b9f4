"""An epoch of training steps of an MLP on a data set in memory: batches gathered in a new order, forward,
cross-entropy, backward, Adam.

Compulsory work: that of its steps (`recipe`).
"""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor

from ..case import OURS, Call, Case, Workload
from ..peers import compiled
from .recipe import Recipe, Sides, Step

_STEPS = 64
# Alternating orders: identical batches would soon be fitted exactly (`step`).
_ORDERS = 4

STEP_BY_STEP = "fastnn TrainStep"


def _build(recipe: Recipe) -> Workload:
    batch = recipe.batch
    x, target = recipe.data(_STEPS * batch)
    orders = [torch.randperm(len(x)) for _ in range(_ORDERS)]
    sides = Sides(recipe)

    def loop(step: Step) -> Call:
        forever = itertools.cycle(orders)

        def epoch() -> Tensor:
            batches = next(forever).split(batch)
            return torch.stack([step(x.index_select(0, b), target.index_select(0, b)) for b in batches])

        return epoch

    whole, forever = sides.train_step(), itertools.cycle(orders)
    return Workload(
        {
            OURS: lambda: whole.epoch(x, target, batch, next(forever)),
            STEP_BY_STEP: loop(sides.train_step()),
            "torch": loop(sides.torch_eager()),
            "torch fused": loop(sides.torch_fused()),
        },
        # Adam divides each gradient by its own size, so rounding in the smallest ones matters.
        tolerance=1e-3,
        optional={compiled.NAME: lambda: loop(sides.torch_compiled())},
        foreign=sides.foreign(
            "training_epoch",
            x=x,
            target=target,
            orders=[order.view(_STEPS, batch) for order in orders],
        ),
    )


CASES = [
    Case(
        f"epoch of {_STEPS} steps",
        recipe.shape,
        partial(_build, recipe),
        flops=_STEPS * recipe.flops,
        traffic=_STEPS * recipe.traffic,
        note=f"{OURS} is TrainStep.epoch",
        quick=quick,
    )
    for recipe, quick in (
        (Recipe((17, 64, 64, 6), 32), True),
        (Recipe((784, 28, 10), 64), False),
        (Recipe((784, 128, 10), 64), False),
    )
]
