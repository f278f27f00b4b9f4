"""A whole training step of an MLP: forward, cross-entropy, backward, Adam; eager on both sides.

Compulsory: 6 flops for each weight and sample, less the 2 for the gradient of the network's input, which
nobody asks for; bias, loss and update are left out of the count.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

import fastnn.nn
import fastnn.optim

from ..case import Call, Case, Workload

# Training on one batch would soon fit it exactly, and gradients of nothing end in subnormal moments, which
# the processor handles in a slow path: not what a training run is like.
_BATCHES = 16


def _torch_mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _stepper(
    model: nn.Module,
    loss_of: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[tuple[Tensor, Tensor]],
) -> Call:
    forever = itertools.cycle(batches)

    def step() -> Tensor:
        x, target = next(forever)
        optimizer.zero_grad()
        loss: Tensor = loss_of(model(x), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _build(widths: Sequence[int], batch: int) -> Workload:
    reference = _torch_mlp(widths)
    batches = [(torch.randn(batch, widths[0]), torch.randint(widths[-1], (batch,))) for _ in range(_BATCHES)]
    makers: dict[
        str, tuple[Callable[[], nn.Module], type[nn.Module], Callable[..., torch.optim.Optimizer]]
    ] = {
        "fastnn": (partial(fastnn.nn.MLP, list(widths)), fastnn.nn.CrossEntropyLoss, fastnn.optim.Adam),
        "torch": (partial(_torch_mlp, widths), nn.CrossEntropyLoss, torch.optim.Adam),
        "torch fused": (
            partial(_torch_mlp, widths),
            nn.CrossEntropyLoss,
            partial(torch.optim.Adam, fused=True),
        ),
    }
    calls = {}
    for name, (make_model, make_loss, make_optimizer) in makers.items():
        model = make_model()
        model.load_state_dict(reference.state_dict())
        calls[name] = _stepper(model, make_loss(), make_optimizer(model.parameters()), batches)
    # Adam's first steps divide each gradient by its own size, so that rounding in the smallest ones counts.
    return Workload(calls, tolerance=1e-4, checked_calls=5)


def _flops(widths: Sequence[int], batch: int) -> int:
    products = [wide * narrow for wide, narrow in itertools.pairwise(widths)]
    return batch * (6 * sum(products) - 2 * products[0])


CASES = [
    Case(
        "training step",
        f"{'-'.join(map(str, widths))}, batch {batch}",
        partial(_build, widths, batch),
        flops=_flops(widths, batch),
        quick=quick,
    )
    for widths, batch, quick in (
        ((784, 28, 10), 64, True),
        ((784, 128, 10), 64, True),
        ((17, 64, 64, 6), 32, True),
        ((784, 512, 10), 128, False),
    )
]
