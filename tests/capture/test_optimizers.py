"""Optimizers with steps of their own: the comparison leaves their state unchanged."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch

import fastnn
from twins import Twins, batch, classify, net


class _Count:
    def __init__(self) -> None:
        self.steps, self.sizes = 0, torch.zeros(())


class _Noting(torch.optim.SGD):
    """Its steps depend on non-tensor state, kept in every possible place."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.n = 0
        self.log: list[int] = []
        self.last: deque[int] = deque(maxlen=3)
        self.of = {"steps": [0]}
        self.count = _Count()
        self.numbers = np.zeros(2)
        self.draws = np.random.default_rng(0)
        self.generator = torch.Generator().manual_seed(0)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.n += 1
        self.log.append(self.n)
        self.last.append(self.n)
        self.of["steps"][0] += 1
        self.count.steps += 1
        self.count.sizes += 1
        self.numbers += 1
        self.late = getattr(self, "late", 0) + 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.n + 0.01 * self.draws.random()
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("before", []).append(p.grad.clone())
                state["n"] = state.get("n", 0) + 1
                p.grad.add_(sum(state["before"][-2:]), alpha=1 / state["n"])
                p.grad.mul_(1 + 0.1 * torch.rand((), generator=self.generator))
        super().step(closure)

    def kept(self) -> list[Any]:
        """All of it."""
        own = [self.n, self.log, [*self.last], self.of, self.count.steps, self.count.sizes.item(), self.late]
        entries = [(len(e["before"]), e["n"]) for e in self.state.values()]
        drawn = [self.draws.random(), self.generator.get_state().tolist()]
        return [*own, self.numbers.tolist(), *drawn, entries]


def test_what_an_optimizer_keeps_is_put_back() -> None:
    twins = Twins(classify, net(), _Noting, native=True)
    for _ in range(6):
        twins.call(*batch())
    assert len(twins.programs) == 1
    eager, captured = twins.optimizers
    assert captured.kept() == eager.kept()


def test_the_comparison_of_a_training_step_leaves_no_trace() -> None:
    model = net(torch.nn.LayerNorm(16))
    optimizer = _Noting(model.parameters())
    step = fastnn.TrainStep(model, torch.nn.CrossEntropyLoss(), optimizer)
    for _ in range(6):
        step(*batch())
    assert optimizer.n == 6


def _on_the_object(optimizer: Any, around: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer.step = around(optimizer.step)


def _in_the_class(optimizer: Any, around: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.SGD, "step", around(torch.optim.SGD.step))


@pytest.mark.parametrize("wrap", [_on_the_object, _in_the_class])
def test_functions_around_a_step(wrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    count = [0]

    def around(step: Any) -> Any:
        def counting(*args: Any) -> Any:
            count[0] += 1
            return step(*args)

        return counting

    wrap(optimizer, around, monkeypatch)
    step = fastnn.capture(classify(model, optimizer))
    with pytest.warns(fastnn.EagerStepWarning, match=r"wrapped around SGD\.step"):
        step(*batch())
    for _ in range(5):
        step(*batch())
    assert count == [6]


def test_a_schedulers_counter_around_a_step() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    step = fastnn.capture(classify(model, optimizer), native=True)
    for _ in range(4):
        step(*batch())
        schedule.step()
    assert len(step.programs) == 1


def _after(group: dict[str, Any], call: int) -> None:
    group["lr"] *= 0.9


def _counts(group: dict[str, Any], call: int) -> None:
    group["n"] = group.get("n", 0) + 1


def _sets(group: dict[str, Any], call: int) -> None:
    group["lr"] = (0.1, 0.05)[call % 2]


def _sets_in_turn(group: dict[str, Any], call: int) -> None:
    """Each value has already been set when a call is recorded."""
    group["lr"] = (0.1, 0.05)[call // 3]


def _in_a_list(group: dict[str, Any], call: int) -> None:
    group.setdefault("rates", []).append(call)


def _another_group(group: dict[str, Any], call: int) -> None:
    group["params"] = [*group["params"]]


class _Agent:
    """Changes the options of an optimizer nested deeper than `reached` looks, or less deep."""

    def __init__(self, change: Any, deep: bool, first: bool) -> None:
        self.model = net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.5)
        self.parts = {"trainer": {"optimizers": [self.optimizer if deep else None]}}
        self.near = None if deep else self.optimizer
        self.change, self.first = change, first

    def of(self, update: Any) -> list[Any]:
        """The losses of calls, and the options after them."""
        in_turn = self.change is _sets_in_turn
        self.optimizer = None  # type: ignore[assignment]
        losses = [update(*batch(), call // 3 % 2 * 3 if in_turn else call % 2) for call in range(12)]
        (group,) = (self.near or self.parts["trainer"]["optimizers"][0]).param_groups  # type: ignore[union-attr]
        return [losses, {key: value for key, value in group.items() if key != "params"}]

    def update(self, x: torch.Tensor, y: torch.Tensor, call: int) -> torch.Tensor:
        own: Any = self.near or self.parts["trainer"]["optimizers"][0]
        own.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        if self.first:
            self.change(own.param_groups[0], call)
        own.step()
        if not self.first:
            self.change(own.param_groups[0], call)
        return loss.detach()


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("deep", [True, False], ids=["deep", "near"])
@pytest.mark.parametrize("change", [_after, _counts, _sets, _sets_in_turn, _in_a_list, _another_group])
def test_options_that_the_function_changes(change: Any, deep: bool, first: bool) -> None:
    agent = _Agent(change, deep, first)
    expected = agent.of(agent.update)
    torch.manual_seed(0)
    agent = _Agent(change, deep, first)
    update = fastnn.capture(agent.update)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert agent.of(update) == expected
    assert any("changes the options of an optimizer, SGD" in str(w.message) for w in told)
    assert update.programs == ()


def test_optimizers_made_in_the_function() -> None:
    def make(model: torch.nn.Module, _: Any) -> Any:
        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return classify(model, torch.optim.SGD(model.parameters(), lr=0.1))(x, y)

        return step

    twins = Twins(make, net(), torch.optim.SGD)
    for call in range(6):
        if call == 2:
            with pytest.warns(fastnn.EagerStepWarning, match="another optimizer in every call"):
                twins.call(*batch())
        else:
            twins.call(*batch())
    assert twins.programs == ()


def test_an_optimizer_instead_of_another() -> None:
    class Agent:
        def __init__(self) -> None:
            self.model = net()
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

        def update(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return classify(self.model, self.optimizer)(x, y)

    agent = Agent()
    step = fastnn.capture(agent.update, native=True)
    for lr in (0.1, 0.2, 0.3):
        agent.optimizer = torch.optim.SGD(agent.model.parameters(), lr=lr)
        for _ in range(5):
            step(*batch())
        assert step.programs[0].native.runs > 0
