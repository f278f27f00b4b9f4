"""A whole training step of an MLP: forward, loss, backward, Adam.

A classifier's, and a critic's as in off-policy reinforcement learning: mean squared error against one value,
Adam with its eps at 1e-5, gradients clipped by their norm. Compulsory: 6 flops for each weight and sample,
less the 2 for the gradient of the network's input, which is not needed; bias, loss, clipping and update are
left out of the count.
"""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import nn

from ..case import OURS, Call, Case, Workload
from ..peers import compiled
from .recipe import EAGER, Recipe, Sides, Step

# Training on one batch would soon fit it exactly, and vanishing gradients lead to subnormal moments, which
# the processor handles in a slow path: unlike a real training run.
_BATCHES = 16

ONE_THREAD = "fastnn, 1 thread"


class _Steps:
    """Steps of one recipe; each side iterates over the same batches independently."""

    def __init__(self, recipe: Recipe) -> None:
        self.sides = Sides(recipe)
        self.batches = [recipe.data(recipe.batch) for _ in range(_BATCHES)]

    def call(self, step: Step) -> Call:
        forever = itertools.cycle(self.batches)
        return lambda: step(*next(forever))


def _build(recipe: Recipe, peers: bool) -> Workload:
    steps = _Steps(recipe)
    sides = steps.sides
    inputs, targets = zip(*steps.batches, strict=True)
    op = "training_step" if recipe.classifier else "regression_step"
    return Workload(
        {
            OURS: steps.call(sides.train_step()),
            EAGER: steps.call(sides.fastnn_eager()),
            "torch": steps.call(sides.torch_eager()),
            "torch fused": steps.call(sides.torch_fused()),
        },
        # Adam's first steps divide each gradient by its size, so rounding in the smallest ones matters.
        tolerance=1e-4,
        checked_calls=5,
        optional={compiled.NAME: lambda: steps.call(sides.torch_compiled())} if peers else {},
        foreign=sides.foreign(op, inputs=inputs, targets=targets),
        learners=frozenset({"scikit-learn"}),
    )


def _build_on_threads(recipe: Recipe) -> Workload:
    steps = _Steps(recipe)

    def held_to(threads: int) -> Call:
        call = steps.call(steps.sides.train_step())

        def run() -> object:
            # Only the first call of a sample, which is not timed, changes anything.
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            return call()

        return run

    # Results are bit for bit the same for every number of threads.
    calls = {OURS: held_to(torch.get_num_threads()), ONE_THREAD: held_to(1)}
    return Workload(calls, tolerance=0.0, checked_calls=5)


def _case(
    op: str, recipe: Recipe, *, name: str = "", group: str = "ops", at: int = 0, quick: bool = False
) -> Case:
    return Case(
        op,
        name + recipe.shape,
        partial(_build, recipe, group == "ops"),
        flops=recipe.flops,
        traffic=recipe.traffic,
        note=f"{OURS} is TrainStep",
        quick=quick,
        group=group,
        at=at,
    )


_CLASSIFIERS = [
    (Recipe((784, 28, 10), 64), True),
    (Recipe((784, 128, 10), 64), True),
    (Recipe((17, 64, 64, 6), 32), True),
    (Recipe((784, 512, 10), 128), False),
    (Recipe((784, 1024, 1024, 10), 512), False),
]
_critic = partial(Recipe, batch=256, classifier=False, eps=1e-5, max_norm=0.5)

CASES = [_case("training step", recipe, quick=quick) for recipe, quick in _CLASSIFIERS]
CASES += [
    _case("critic step", _critic((23, 64, 64, 1), activation=nn.Tanh), name="tanh ", quick=True),
    _case("critic step", _critic((23, 256, 256, 1)), name="relu ", quick=True),
]
CASES += [
    Case(
        "step beside one thread",
        recipe.shape,
        partial(_build_on_threads, recipe),
        flops=recipe.flops,
        note=f"{OURS} is TrainStep on all threads of the run",
        quick=quick,
        least_threads=2,
    )
    for recipe, quick in _CLASSIFIERS
]

# One thing varies at a time; torch.compile, which recompiles for each shape, is left out.
_SWEEPS: dict[str, list[tuple[int, tuple[int, ...], int]]] = {
    "batch": [(2**i, (784, 128, 10), 2**i) for i in range(4, 11)],
    "width": [(2**i, (784, 2**i, 10), 64) for i in range(5, 11)],
    "depth": [(i, (784, *[128] * i, 10), 64) for i in range(1, 7)],
}

CASES += [
    _case(f"step over {what}", Recipe(widths, batch), group="sweep", at=value, quick=i == 0)
    for what, points in _SWEEPS.items()
    for i, (value, widths, batch) in enumerate(points)
]
