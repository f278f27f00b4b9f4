"""A program that differs from torch is detected before it is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from fastnn.capture.ir import View
from fastnn.capture.lowering.table import RULES, Lowering
from twins import Twins, batch, classify, net


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


def _bias_without_effect() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))


def test_a_gradient_that_is_nothing_but_rounding() -> None:
    """Of a bias before a BatchNorm: Adam scales it up to the size of any other, differently in every run."""
    model = _bias_without_effect()
    step = fastnn.capture(classify(model, torch.optim.Adam(model.parameters(), lr=0.1)), native=True)
    for _ in range(8):
        step(*batch())
    assert step.programs[0].checked


class _Seen:
    """The calls of an op that only Python has, a copy: replays and comparisons make them too."""

    def __init__(self) -> None:
        self.count = 0
        self.fails_at: int | None = None

    def call(self, x: Tensor) -> Tensor:
        self.count += 1
        if self.count == self.fails_at:
            raise RuntimeError("no memory")
        return x.clone()


_seen = _Seen()
_LIBRARY = torch.library.Library("fastnn_tests", "FRAGMENT")  # an op lasts as long as this object
_LIBRARY.define("seen(Tensor x) -> Tensor")
_LIBRARY.impl("seen", _seen.call, "CPU")


def _classify_seen(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """The usual step, with that op."""
    step = classify(model, optimizer)
    return lambda x, y: step(torch.ops.fastnn_tests.seen(x), y)


@pytest.mark.parametrize(("make", "runs"), [(net, 3), (_bias_without_effect, 7)], ids=["agree", "measured"])
def test_what_rounding_changes_is_measured_where_that_matters(make: Any, runs: int) -> None:
    model = make()
    step = fastnn.capture(_classify_seen(model, torch.optim.Adam(model.parameters())), native=True)
    for _ in range(2):
        step(*batch())
    before = _seen.count
    step(*batch())
    assert _seen.count - before == runs + 1, "then the function runs as written"
    assert step.programs[0].checked is True


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


def test_an_unchecked_program_runs_at_once() -> None:
    model = net()
    step = fastnn.capture(classify(model, torch.optim.Adam(model.parameters())), check=False)
    for _ in range(3):
        step(*batch())
    assert step.programs[0].checked is False


def _real_part(low: Lowering, out: View, x: View) -> None:
    low.elementwise(View(out.storage, 0, (2 * out.numel,), (1,), torch.float32), 0.0)


def test_the_self_check_compares_imaginary_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "sgn.default", _real_part)
    turned = fastnn.capture(lambda x: torch.complex(torch.zeros_like(x), x).sgn() * 2)
    _refuses(turned, torch.randn(4))


def _refuses(captured: Any, *args: Tensor) -> None:
    captured(*args)
    captured(*args)
    with pytest.warns(fastnn.EagerStepWarning, match="self-check found a difference"):
        captured(*args)


@pytest.mark.parametrize("whole", [True, False])
def test_a_tolerance_floor_does_not_hide_wrong_values(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at whole numbers, nor for elements that do not jump themselves."""

    def broken(low: Lowering, out: View, x: View) -> None:
        low.elementwise(out, ("add", ("floor", x), ("mul", ("gt", x, 50), 3.0)))

    monkeypatch.setitem(RULES, "floor.default", broken)
    x = torch.arange(100.0)
    if not whole:
        x = x + 0.5
        x[4:10] = torch.arange(4.0, 10.0) * (1 + 3e-7)
    _refuses(fastnn.capture(torch.floor), x)


def test_an_infinity_is_not_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        RULES, "log.default", lambda low, out, x: low.elementwise(out, ("log", ("sub", x, 1)))
    )
    _refuses(fastnn.capture(lambda x: (x * 0).log()[:1] - torch.inf), torch.ones(3))


class _Counting(torch.optim.Optimizer):
    """Keeps its step count among the options."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "k": 0, "weights": torch.zeros(())})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            group["weights"] += 1
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"] / group["k"])


@pytest.mark.parametrize("kind", [_Counting, torch.optim.Adam])
def test_optimizers_that_count_steps_and_call_hooks(kind: Any) -> None:
    model = net()
    optimizer = kind(model.parameters())
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    step = fastnn.capture(classify(model, optimizer), native=True)
    for i in range(1, 7):
        step(*batch())
        assert called == ["before", "after"] * i
        if kind is _Counting:
            assert optimizer.param_groups[0]["k"] == i
            assert optimizer.param_groups[0]["weights"].item() == i
    assert len(step.programs) == 1


def test_hooks_that_change_a_step_are_reported() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_value_(model.parameters(), 1e-3))
    step = fastnn.capture(classify(model, optimizer))
    step(*batch())
    step(*batch())
    with pytest.warns(fastnn.EagerStepWarning, match="hooks of the optimizer's step"):
        step(*batch())


@pytest.mark.parametrize("run", range(1, 8))
def test_a_program_that_raises_while_it_is_compared(run: int) -> None:
    """The call is then run by torch, with all its effects."""
    twins = Twins(_classify_seen, _bias_without_effect(), torch.optim.Adam)
    for i in range(5):
        if i == 2:
            _seen.fails_at = _seen.count + 1 + run  # first the other twin
            with pytest.warns(fastnn.EagerStepWarning, match="the program raises RuntimeError: no memory"):
                twins.call(*batch())
        else:
            twins.call(*batch())
    assert twins.programs == ()


def _forks(x: Tensor, own: torch.Generator) -> Tensor:
    with torch.random.fork_rng():
        return x + torch.randn(3)


def _seeds(x: Tensor, own: torch.Generator) -> Tensor:
    torch.manual_seed(4)
    return x + torch.randn(3)


def _seeds_its_own(x: Tensor, own: torch.Generator) -> Tensor:
    own.manual_seed(4)
    return x + torch.randn(3, generator=own)


@pytest.mark.parametrize("draws", [_forks, _seeds, _seeds_its_own])
def test_states_of_random_numbers_that_are_set(draws: Any) -> None:
    numbers = []
    for captured in (False, True):
        torch.manual_seed(1)
        own = torch.Generator().manual_seed(1)
        step = fastnn.capture(lambda x, own=own: draws(x, own)) if captured else draws
        drawn = []
        for i in range(6):
            args = (torch.randn(3),) if captured else (torch.randn(3), own)
            if captured and i == 2:
                with pytest.warns(fastnn.EagerStepWarning, match="fork_rng do: call these outside"):
                    drawn.append(step(*args))
            else:
                drawn.append(step(*args))
        numbers.append(torch.stack(drawn))
    assert torch.equal(*numbers)
