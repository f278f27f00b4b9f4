"""Epochs of recorded steps: one native call for many of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import fastnn
from recorded_steps import DOUBLE, Net, WithNorms, step_of
from train_steps import TOLERANCE, classes_of, recorded


@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize("kind", [Net, WithNorms])
def test_an_epoch_is_the_loop(kind: type[Net], rates: bool) -> None:
    x, y = torch.randn(60, 6, dtype=DOUBLE), classes_of(60, 4)
    order, lr = torch.randperm(58), torch.linspace(0.1, 0.01, 8).tolist() if rates else None
    model = kind()
    step, twin = (recorded(step_of(copy.deepcopy(model)), x[:8], y[:8]) for _ in range(2))
    seen = fastnn.explain(step.epoch, x, y, 8, order, lr=lr)
    assert ("train_epoch", None) in seen.decisions
    losses = []
    for i, rows in enumerate(order.split(8)):
        if lr is not None:
            for group in twin.optimizer.param_groups:
                group["lr"] = lr[i]
        losses.append(twin(x[rows], y[rows]))
    assert torch.equal(seen.result, torch.stack(losses))
    for p, q in zip(step.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert step.optimizer.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize("bad", [-1, 60])
def test_an_epoch_stops_at_a_row_that_is_not_there(bad: int) -> None:
    x, y = torch.randn(60, 6, dtype=DOUBLE), classes_of(60, 4)
    step = recorded(step_of(Net()), x[:8], y[:8])
    order = torch.arange(40)
    order[20] = bad
    before = float(step.optimizer.state[step.model.fc1.weight]["step"])
    with pytest.raises(IndexError, match=f"permutation has the entry {bad} in step 2"):
        step.epoch(x, y, 8, order)
    assert float(step.optimizer.state[step.model.fc1.weight]["step"]) == before + 2


def test_an_epoch_stops_at_a_class_that_is_not_there() -> None:
    x, y = torch.randn(40, 6, dtype=DOUBLE), classes_of(40, 4)
    step = recorded(step_of(Net()), x[:8], y[:8])
    y[20] = 4
    before = float(step.optimizer.state[step.model.fc1.weight]["step"])
    with pytest.raises(IndexError, match="Target 4 is out of bounds"):
        step.epoch(x, y, 8, torch.arange(40))
    assert float(step.optimizer.state[step.model.fc1.weight]["step"]) == before + 2


def test_an_epoch_with_what_torch_runs_is_the_loop() -> None:
    """With an op that has no instruction."""

    class Odd(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).cumsum(1)

    x, y = torch.randn(40, 6, dtype=DOUBLE), classes_of(40, 4)
    step = recorded(step_of(Odd()), x[:8], y[:8])
    seen = fastnn.explain(step.epoch, x, y, 8)
    assert [d.reason for d in seen.decisions if d.op == "train_step"] == [None] * 5
    assert any("torch runs a part of the step" in str(d.reason) for d in seen.decisions)


def test_rows_of_an_epoch_that_are_not_contiguous() -> None:
    x, y = torch.randn(6, 40, dtype=DOUBLE).t(), classes_of(40, 4)
    step = recorded(step_of(Net()), x[:8], y[:8])
    twin = copy.deepcopy(step)
    losses = step.epoch(x, y, 8, torch.arange(40))
    with fastnn.disabled():
        expected = twin.epoch(x, y, 8, torch.arange(40))
    torch.testing.assert_close(losses, expected, rtol=TOLERANCE, atol=TOLERANCE)
