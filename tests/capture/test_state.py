"""State that the function reaches other than through arguments."""

from __future__ import annotations

import copy
import gc
import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastnn
from twins import Twins, batch, classify, net, same


def _ready(*extra: nn.Module, optimizer: Any = torch.optim.Adam) -> Twins:
    twins = Twins(classify, net(*extra), optimizer)
    for _ in range(4):
        twins.call(*batch())
    assert len(twins.programs) == 1
    return twins


def _both(twins: Twins, change: Any) -> None:
    for model, optimizer in zip(twins.nets, twins.optimizers, strict=True):
        torch.manual_seed(4)
        change(model, optimizer)


@pytest.mark.parametrize(
    "change",
    [
        lambda m, o: o.param_groups[0].update(lr=0.1),
        lambda m, o: o.param_groups[0].update(weight_decay=0.3, betas=(0.5, 0.6)),
        lambda m, o: m.load_state_dict({k: v + 0.1 for k, v in m.state_dict().items()}),
        lambda m, o: o.load_state_dict(copy.deepcopy(o.state_dict())),
        lambda m, o: setattr(m[0].weight, "data", torch.randn(16, 8)),
        lambda m, o: o.state.clear(),
    ],
    ids=["lr", "options", "load", "load-optimizer", "data", "state-cleared"],
)
def test_served_by_the_same_program(change: Any) -> None:
    twins = _ready()
    _both(twins, change)
    for _ in range(3):
        twins.call(*batch())
    assert len(twins.programs) == 1


def _freeze(model: nn.Module, optimizer: Any) -> None:
    model[0].weight.requires_grad_(requires_grad=False)


def _other_parameter(model: nn.Module, optimizer: Any) -> None:
    model[0].weight = nn.Parameter(torch.randn(16, 8))
    optimizer.param_groups[0]["params"][0] = model[0].weight


@pytest.mark.parametrize(
    "change",
    [
        lambda m, o: m.eval(),
        _freeze,
        _other_parameter,
        lambda m, o: setattr(m, "0", nn.Linear(8, 16)),
        lambda m, o: setattr(m[0].weight, "data", torch.randn(8, 16).t()),
        lambda m, o: o.param_groups[0].update(amsgrad=True),
    ],
    ids=["eval", "frozen", "parameter", "layer", "strides", "amsgrad"],
)
def test_what_changes_between_calls_is_noticed(change: Any) -> None:
    twins = _ready(nn.Dropout(0.5))
    if change.__code__.co_names[:1] == ("param_groups",):
        for optimizer in twins.optimizers:
            optimizer.state.clear()
    _both(twins, change)
    for _ in range(5):
        twins.call(*batch())


def test_what_is_kept_outside_is_refused() -> None:
    kept: dict[str, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> None:
        kept["last"] = x * 2

    captured = fastnn.capture(keep)
    captured(torch.randn(3))
    with pytest.warns(fastnn.EagerStepWarning, match="stored outside its return value"):
        captured(torch.randn(3))
    for _ in range(3):
        x = torch.randn(3)
        captured(x)
        same(kept["last"], x * 2)


@pytest.mark.parametrize("logged", [lambda y: y.detach(), lambda y: y[:2], lambda y: y])
def test_what_is_returned_is_not_kept_outside_too(logged: Callable[[torch.Tensor], torch.Tensor]) -> None:
    log: list[torch.Tensor] = []

    def step(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        log.append(logged(y))
        return y.detach()

    captured = fastnn.capture(step)
    captured(torch.randn(3))
    with pytest.warns(fastnn.EagerStepWarning, match="stored outside its return value"):
        captured(torch.randn(3))
    for _ in range(3):
        captured(torch.randn(3))
    assert len(log) == 5


def test_a_view_is_returned_of_what_nobody_else_holds() -> None:
    halves = fastnn.capture(lambda x: (x * 2).unbind(), native=True)
    for _ in range(5):
        x = torch.randn(2, 3)
        same(list(halves(x)), [2 * x[0], 2 * x[1]])


def test_what_is_in_a_cycle_is_freed() -> None:
    class Node:
        pass

    def cyclic(x: torch.Tensor) -> torch.Tensor:
        node = Node()
        node.itself, node.value = node, x * 2  # type: ignore[attr-defined]
        return x + 1

    captured = fastnn.capture(cyclic)
    for _ in range(4):
        captured(torch.ones(2))
    assert len(captured.programs) == 1


def test_other_float_types() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = net().to(dtype)
        twin = copy.deepcopy(model)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin)]
        step, eager = fastnn.capture(classify(model, optimizers[0])), classify(twin, optimizers[1])
        for _ in range(5):
            x, y = batch()
            same(step(x.to(dtype), y), eager(x.to(dtype), y), rtol=2e-2, atol=2e-2)
        assert len(step.programs) == 1


@pytest.mark.parametrize("steps", [25_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_memory_does_not_grow(steps: int) -> None:
    model = net(nn.BatchNorm1d(16), nn.Dropout(0.1))
    step = fastnn.capture(classify(model, torch.optim.Adam(model.parameters())))
    data = batch()
    for _ in range(1000):
        step(*data)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(steps):
        step(*data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048  # KiB


def test_programs_are_collected() -> None:
    import weakref

    model = net()
    weight = weakref.ref(model[0].weight)
    step = fastnn.capture(classify(model, torch.optim.Adam(model.parameters())))
    for _ in range(4):
        step(*batch())
    del model, step
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("calls", ["la", "llla"])
def test_functions_that_set_the_training_mode(calls: str) -> None:
    def make(model: Any, optimizer: Any) -> Any:
        def learn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            model.train()
            return classify(model, optimizer)(x, y)

        @torch.no_grad()
        def act(x: torch.Tensor) -> torch.Tensor:
            model.eval()
            return model(x)

        return learn, act

    models = [net(nn.Dropout(0.5)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    eager, captured = (make(m, torch.optim.SGD(m.parameters(), 0.1)) for m in models)
    captured = [fastnn.capture(fn) for fn in captured]
    for i in range(8):
        for call in calls:
            results = []
            for learn, act in (eager, captured):
                torch.manual_seed(i)
                x, y = batch()
                results.append(learn(x, y) if call == "l" else act(x))
            same(results[1], results[0])
            assert [m.training for m in models[1].modules()] == [m.training for m in models[0].modules()]
    assert all(any(program.native.runs > 1 for program in fn.programs) for fn in captured)
