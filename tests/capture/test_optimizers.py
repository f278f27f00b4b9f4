"""Optimizers with steps of their own: the comparison leaves no trace in them."""

from __future__ import annotations

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
    """Its steps depend on what it keeps beside tensors, which it has wherever one can have it."""

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
    with pytest.warns(fastnn.EagerStepWarning, match=r"a function around SGD\.step"):
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
