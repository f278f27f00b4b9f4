"""A program that does something else than torch is found out before it is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from fastnn.capture.ir import View
from fastnn.capture.lowering.table import RULES, Lowering
from twins import batch, classify, net


def _off_by_little(low: Lowering, out: View, x: View) -> None:
    low.elementwise(out, ("mul", ("relu", x), 1.001))


def _without_last(low: Lowering, out: View, x: View, *rest: Any) -> None:
    low.elementwise(out, ("relu", x.expand(out.shape)))
    low.elementwise(out.with_shape((1,), (1,), out.offset + out.numel - 1), 0.0)


def _nothing(low: Lowering, out: View, *rest: Any) -> None:
    low.elementwise(out, 0.0)


@pytest.mark.parametrize(
    ("op", "broken"),
    [
        ("relu.default", _off_by_little),
        ("relu.default", _without_last),
        ("threshold_backward.default", _nothing),
        ("nll_loss_forward.default", lambda low, out, *rest: _nothing(low, out[0])),
        ("mm.default", _nothing),
    ],
    ids=["factor", "an-element", "gradient", "loss", "product"],
)
def test_a_broken_instruction(op: str, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, op, broken)
    model = net()
    twin = net()
    twin.load_state_dict(model.state_dict())
    step = fastnn.capture(classify(model, torch.optim.SGD(model.parameters(), lr=0.1)))
    eager = classify(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
    data = [batch() for _ in range(6)]
    losses = []
    for i, (x, y) in enumerate(data):
        if i == 2:
            with pytest.warns(fastnn.EagerStepWarning, match="self-check found a difference"):
                losses.append(step(x, y))
        else:
            losses.append(step(x, y))
    assert step.programs == ()
    assert torch.equal(torch.stack(losses), torch.stack([eager(x, y) for x, y in data]))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_gradient_that_is_nothing_but_rounding() -> None:
    """Of a bias before a BatchNorm: Adam makes as much of it as of any other, in every run another."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
    step = fastnn.capture(classify(model, torch.optim.Adam(model.parameters(), lr=0.1)), native=True)
    for _ in range(8):
        step(*batch())
    assert step.programs[0].checked


def test_the_comparison_leaves_no_trace() -> None:
    """State, counts, gradients and random numbers after the third call are those of one eager call."""
    finals = []
    for captured in (False, True):
        torch.manual_seed(1)
        model = net(nn.BatchNorm1d(16), nn.Dropout(0.4))
        optimizer = torch.optim.Adam(model.parameters())
        step = classify(model, optimizer)
        step = fastnn.capture(step) if captured else step  # type: ignore[assignment]
        for _ in range(3):
            step(*batch())
        state: list[Tensor] = [*model.state_dict().values(), torch.get_rng_state()]
        state += [t for entries in optimizer.state.values() for t in entries.values()]
        state += [p.grad for p in model.parameters()]  # type: ignore[misc]
        finals.append(state)
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))


def test_unchecked() -> None:
    model = net()
    step = fastnn.capture(classify(model, torch.optim.Adam(model.parameters())), check=False)
    for _ in range(3):
        step(*batch())
    assert step.programs[0].checked is False
