"""docs/works-with.md: native calls have names in torch.profiler's output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fastnn
from fastnn import functional, nn, optim
from page import Cell, line
from pairs import EAGER, HIDDEN, IN, OUT, Pair, batch, network

pytestmark = EAGER


def labels(run: Callable[[], Any]) -> set[str]:
    """fastnn's names in a profile of `run`."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    return {event.name.removeprefix("fastnn::") for event in profiled.events() if "fastnn::" in event.name}


@line("profiler")
def test_the_profiler_shows_names_of_ops(cell: Cell) -> None:
    """A step under the profiler does the same in the same place as without, and shows what."""
    pair = Pair(cell.column)
    pair.steps()
    seen = labels(lambda: pair.mine.step(*batch()))
    wanted = {
        "modules": {"mlp_forward", "mlp_backward", "cross_entropy_forward", "cross_entropy_scale_gradient"},
        "optimizers": {"adam_step"},
        "step": {"train_step"},
        "capture": {"program"},
    }
    assert seen == wanted[cell.column]

    pair = Pair(cell.column)  # recorded under the profiler
    with profile(activities=[ProfilerActivity.CPU]):
        pair.steps()
    pair.steps()
    pair.check(cell, lambda: profile(activities=[ProfilerActivity.CPU]))


def _matrix(rows: int = HIDDEN) -> Tensor:
    return torch.randn(rows, IN, requires_grad=True)


def _gradients() -> list[Tensor]:
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    return [param]


UPDATES = {
    "Adam": "adam",
    "AdamW": "adam",
    "SGD": "sgd",
    "Adagrad": "adagrad",
    "RMSprop": "rmsprop",
}
CALLS: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "linear": (
        lambda: functional.linear(_matrix(), _matrix(OUT)).sum().backward(),
        {"linear_forward", "linear_backward"},
    ),
    "linear without gradient": (
        lambda: functional.linear(_matrix().detach(), torch.ones(2, IN)),
        {"linear_forward"},
    ),
    "relu": (lambda: functional.relu(_matrix()).sum().backward(), {"relu_forward", "relu_backward"}),
    "cross_entropy": (
        lambda: functional.cross_entropy(_matrix(2), torch.tensor([0, 1])).backward(),
        {"cross_entropy_forward", "cross_entropy_scale_gradient"},
    ),
    "linear_cross_entropy": (
        lambda: functional.linear_cross_entropy(_matrix(2), _matrix(OUT), torch.tensor([0, 1])).backward(),
        {"linear_cross_entropy"},
    ),
    "gram_matrix": (
        lambda: functional.gram_matrix(_matrix()).sum().backward(),
        {"gram_forward", "gram_backward"},
    ),
    "clip_grad_norm_": (lambda: nn.utils.clip_grad_norm_(_gradients(), 1.0), {"clip_grad_norm"}),
    "polyak_": (lambda: optim.polyak_([torch.ones(3)], [torch.zeros(3)], 0.5), {"polyak"}),
    **{
        name: (lambda name=name: getattr(optim, name)(_gradients()).step(), {f"{kind}_step"})
        for name, kind in {
            "Adam": "adam",
            "AdamW": "adam",
            "SGD": "sgd",
            "Adagrad": "adagrad",
            "RMSprop": "rmsprop",
        }.items()
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_names_of_native_calls(name: str) -> None:
    run, wanted = CALLS[name]
    assert labels(run) == wanted


def test_names_of_many_steps() -> None:
    """An epoch has one name for each native call."""
    for model, wanted in (
        (network(), "train_step"),
        (torch.nn.Sequential(network(), torch.nn.ELU()), "program"),
    ):
        x, y = batch(64)
        step = fastnn.TrainStep(model, torch.nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters()))
        step.epoch(x, y, 8)
        assert labels(lambda step=step, x=x, y=y: step.epoch(x, y, 8)) == {wanted}


def test_without_a_profiler_calls_have_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name takes about as long as a small op."""
    opened: list[str] = []

    def record(name: str) -> Any:
        opened.append(name)
        return contextlib.nullcontext()

    monkeypatch.setattr("fastnn._labels.record_function", record)
    for run, _ in CALLS.values():
        run()
    pair = Pair("capture")
    pair.steps()
    assert not opened
