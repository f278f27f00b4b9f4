"""Regression tests for faults found in a review of captured functions."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastnn
from twins import same


def test_gradients_that_the_function_drops_itself_are_accumulated_until_then() -> None:
    twins = [nn.Linear(3, 2) for _ in range(2)]
    twins[1].load_state_dict(twins[0].state_dict())

    def make(model: nn.Module) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def micro(x: torch.Tensor, last: bool) -> None:
            model(x).square().sum().backward()
            if last:
                optimizer.step()
                optimizer.zero_grad()

        return micro

    eager, captured = make(twins[0]), fastnn.capture(make(twins[1]))
    for i in range(24):
        x = torch.randn(4 if i < 12 else 3, 3)
        for step in (eager, captured):
            step(x, i % 2 == 1)
        grads = [[p.grad for p in model.parameters()] for model in twins]
        assert [g is None for g in grads[1]] == [g is None for g in grads[0]]
        same(grads[1], grads[0])
        same(list(twins[1].parameters()), list(twins[0].parameters()))


def test_the_order_of_keywords() -> None:
    joined = fastnn.capture(lambda **parts: torch.cat(list(parts.values())))
    a, b = torch.ones(2), torch.zeros(1)
    for _ in range(4):
        joined(a=a, b=b)
    assert joined(b=b, a=a).tolist() == [0, 1, 1]


def test_memory_that_begins_elsewhere() -> None:
    weight = nn.Parameter(torch.zeros(4))
    island = fastnn.capture(lambda x: (x + torch.special.i1e(weight)).detach())
    for _ in range(5):
        island(torch.zeros(4))
    weight.data = torch.arange(100.0)[50:54]
    same(island(torch.zeros(4)), torch.special.i1e(weight).detach())


def test_a_result_that_views_a_parameter() -> None:
    weight = nn.Parameter(torch.zeros(3))
    views = fastnn.capture(lambda x: (x + 1, weight.detach()))
    for _ in range(4):
        views(torch.zeros(3))
    weight.data = torch.ones(3)
    assert views(torch.zeros(3))[1].tolist() == [1, 1, 1]


def _replace_buffer(model: Any) -> None:
    model.scale = torch.full((3,), 5.0)


def _replace_in_list(model: Any) -> None:
    model.layers[0] = copy.deepcopy(model.layers[1])


def _add_hook(model: Any) -> None:
    model.layers[0].register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize("change", [_replace_buffer, _replace_in_list, _add_hook])
def test_changes_of_modules_are_noticed(change: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
            self.register_buffer("scale", torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x * self.scale

    model = Model()
    run = fastnn.capture(model)
    with torch.no_grad():
        for _ in range(4):
            run(torch.randn(2, 3))
        change(model)
        x = torch.randn(2, 3)
        same(run(x), model(x))


def test_the_comparison_writes_only_what_the_function_writes(tmp_path: Path) -> None:
    np.arange(6, dtype=np.float32).tofile(tmp_path / "read")
    read_only = np.memmap(tmp_path / "read", dtype=np.float32, mode="r")
    with pytest.warns(UserWarning, match="not writable"):
        x = torch.from_numpy(read_only)
    model = nn.Linear(6, 2)
    run = fastnn.capture(lambda x: model(x).detach())
    waiting = model(x).sum()
    for _ in range(5):
        same(run(x), model(x))
        run(x[:1].expand(6))
    waiting.backward()
    assert len(run.programs) == 2


def test_a_list_that_changes_while_the_program_runs() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.NAdam(model.parameters())
    given: list[torch.Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: given.clear())

    def step(xs: list[torch.Tensor]) -> torch.Tensor:
        x = xs[0]
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        return torch.special.i1(x)

    captured = fastnn.capture(step, check=False)
    for _ in range(6):
        given.append(torch.ones(2, 3))
        same(captured(given), torch.special.i1(torch.ones(2, 3)))


def test_errors_in_the_comparison_are_those_of_torch() -> None:
    pick = fastnn.capture(lambda x, i: x[i] + 1)
    for _ in range(2):
        pick(torch.ones(3), torch.tensor([0, 1]))
    with pytest.raises(IndexError):
        pick(torch.ones(3), torch.tensor([0, 7]))


def test_constants_are_made_again() -> None:
    def penalty(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.tensor(0.0)
        total += x.sum()
        return total.clone(), torch.tensor([1.0, 2.0])

    captured = fastnn.capture(penalty, native=True)
    for i in range(6):
        total, constant = captured(torch.full((2,), float(i)))
        assert total.item() == 2.0 * i
        assert constant.tolist() == [1.0, 2.0]
        constant.add_(5)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x * max(x.tolist()),
        lambda x: x + torch.from_numpy(np.clip(x.numpy(), 1, 5)),
        lambda x: setattr(torch.ones(3), "data", x * 2),
    ],
    ids=["tolist", "numpy", "data"],
)
def test_what_bypasses_torchs_ops_is_refused(fn: Any) -> None:
    captured = fastnn.capture(fn)
    with pytest.warns(fastnn.EagerStepWarning, match="without torch.s ops"):
        captured(torch.ones(3))
    for i in range(5):
        x = torch.full((3,), float(i))
        same(captured(x), fn(x))


@pytest.mark.filterwarnings("ignore:.*did not keep, and found zeros:fastnn.EagerStepWarning")
def test_parameters_that_an_optimizer_gets_or_loses() -> None:
    layers = [[nn.Linear(3, 3), nn.Linear(3, 1)] for _ in range(2)]
    layers[1] = copy.deepcopy(layers[0])
    optimizers = [torch.optim.SGD(first.parameters(), lr=0.1) for first, _ in layers]

    def make(i: int) -> Any:
        def step(x: torch.Tensor) -> torch.Tensor:
            optimizers[i].zero_grad()
            loss = layers[i][1](layers[i][0](x)).square().mean()
            loss.backward()
            optimizers[i].step()
            return loss.detach()

        return step

    eager, captured = make(0), fastnn.capture(make(1))
    for call in range(12):
        if call in (5, 9):
            for (_, second), optimizer in zip(layers, optimizers, strict=True):
                if call == 5:
                    optimizer.add_param_group({"params": list(second.parameters())})
                else:
                    del optimizer.param_groups[1]
        x = torch.randn(4, 3)
        same(captured(x), eager(x))
        same([p for m in layers[1] for p in m.parameters()], [p for m in layers[0] for p in m.parameters()])


def test_types_of_results_stay() -> None:
    captured = fastnn.capture(lambda x: (torch.max(x, 1), x.shape, OrderedDict(a=x + 1)))
    for _ in range(5):
        x = torch.randn(2, 3)
        found, shape, named = captured(x)
        same(found.values, x.max(1).values)
        assert type(shape) is torch.Size
        assert type(named) is OrderedDict


@dataclass
class Holder:
    """An object that no replay can recreate."""

    value: torch.Tensor


def _generator(x: torch.Tensor) -> Iterator[torch.Tensor]:
    yield x + 1


@pytest.mark.parametrize("fn", [Holder, _generator, lambda x: {x.shape}], ids=["object", "generator", "set"])
def test_results_that_cannot_be_made_again(fn: Any) -> None:
    captured = fastnn.capture(fn)
    captured(torch.ones(2))
    with pytest.warns(fastnn.EagerStepWarning, match="it returns a"):
        captured(torch.ones(2))
    results = [captured(torch.ones(2)) for _ in range(2)]
    assert results[0] is not results[1]


class Equal:
    """Objects that all compare equal."""

    def __init__(self, value: float) -> None:
        self.value = torch.tensor(value)

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1

    @fastnn.capture
    def add(self, x: torch.Tensor) -> torch.Tensor:
        """Add the value."""
        return x + self.value


def test_objects_that_are_equal_are_not_one() -> None:
    objects = [Equal(1.0), Equal(2.0)]
    for _ in range(5):
        assert [o.add(torch.zeros(1)).item() for o in objects] == [1.0, 2.0]
    assert all(len(o.add.programs) == 1 for o in objects)


def test_two_threads_work_on_large_products() -> None:
    """With instructions between them that check indices, whose flags are in memory that is reused."""
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters())

    def step(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(x).gather(1, i) - model(x[i[:, 0]]).amax(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    captured = fastnn.capture(step)
    torch.set_num_threads(2)
    try:
        for _ in range(200):
            captured(torch.randn(256, 128), torch.randint(0, 10, (256, 1)))
    finally:
        torch.set_num_threads(1)
    assert len(captured.programs) == 1
