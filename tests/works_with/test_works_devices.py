"""docs/works-with.md: models that start without memory or without a size, and default devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastnn
from page import Cell, line
from pairs import EAGER, HIDDEN, OUT, Pair, Training, batch, network

pytestmark = EAGER


@pytest.mark.parametrize("device", ["cpu", "meta"])
@line("set_default_device")
def test_a_default_device_is_obeyed(cell: Cell, device: str) -> None:
    """Models on the CPU are trained there, wherever new tensors are made."""
    pair = Pair(cell.column)
    pair.steps()
    torch.set_default_device(device)
    try:
        x, y = batch()
        if device == "cpu":
            made = Training(cell.column, network())
            made.step(x, y)
        for _ in range(5):
            losses = pair.mine.step(x, y), pair.theirs.step(x, y)
            torch.testing.assert_close(*(loss.item() for loss in losses))  # a tensor would be made there
        pair.check(cell)
    finally:
        torch.set_default_device(None)
    pair.compare()


@line("models made on the meta device")
def test_models_are_made_on_the_meta_device(cell: Cell) -> None:
    weights = network().state_dict()

    def model() -> torch.nn.Module:
        with torch.device("meta"):
            made = network()
        made.to_empty(device="cpu")
        made.load_state_dict(weights)
        return made

    pair = Pair(cell.column, model)
    pair.steps()
    pair.check(cell)


def test_modules_on_the_meta_device() -> None:
    """fastnn's own are also created there, and their forward returns shapes."""
    with torch.device("meta"):
        models = [
            fastnn.nn.MLP([8, HIDDEN, OUT]),
            torch.nn.Sequential(torch.nn.Linear(8, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, OUT)),
        ]
        outputs = [model(torch.empty(5, 8)) for model in models]
    assert outputs[0].shape == outputs[1].shape
    assert outputs[0].device.type == "meta"


def _lazy() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.LazyLinear(HIDDEN), torch.nn.ReLU(), torch.nn.LazyLinear(OUT)
    ).double()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@line("LazyLinear")
def test_a_lazy_linear_gets_its_size(cell: Cell) -> None:
    """The first forward makes it a Linear, after which it is converted."""
    weights = network().state_dict()

    def model() -> torch.nn.Module:
        made = _lazy()
        fastnn.convert(made)  # lazy modules are left alone
        made(batch()[0])
        made.load_state_dict(weights)
        return fastnn.revert(made)

    pair = Pair(cell.column, model)
    assert type(pair.theirs.model[0]) is torch.nn.Linear
    pair.steps()
    pair.check(cell)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("first", [lambda model: model, fastnn.convert])
def test_lazy_weights_are_loaded(first: Callable[[Any], Any]) -> None:
    weights, lazy = network().state_dict(), first(_lazy())
    lazy.load_state_dict(weights)
    model, x = network(), batch()[0]
    model.load_state_dict(weights)
    torch.testing.assert_close(lazy(x), model(x))
