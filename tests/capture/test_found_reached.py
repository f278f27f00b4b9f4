"""What a captured function reaches besides its arguments."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Geometric, MultivariateNormal, Normal

import fastnn
from twins import same


def _repeat(captured: Any, *given: Tensor) -> None:
    for _ in range(4):
        captured(*given)


def test_arguments_that_are_also_reached_in_another_way() -> None:
    model, other, running = nn.Linear(3, 2), nn.Linear(3, 2), torch.zeros(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def decayed_step(x: Tensor, weight: Tensor) -> Tensor:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        weight.mul_(0.9)
        optimizer.step()
        return weight.sum()

    def gradient(x: Tensor, grad: Tensor) -> Tensor:
        other(x).sum().backward()
        return grad.sum()

    other(torch.ones(3)).sum().backward()
    for fn, given in [
        (decayed_step, [torch.ones(4, 3), model.weight.detach()]),
        (gradient, [torch.ones(4, 3), other.weight.grad]),
        (lambda x: x + running, [running]),
        (lambda x: x + running[:2], [running[1:]]),
    ]:
        with pytest.raises(RuntimeError, match="shares memory"):
            _repeat(fastnn.capture(fn, native=True), *given)


def test_an_argument_that_the_call_itself_stores() -> None:
    kept: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        kept.append(x)
        return x * 2

    captured = fastnn.capture(remember)
    captured(torch.ones(3))
    with pytest.warns(fastnn.EagerStepWarning, match="shares memory"):
        captured(torch.ones(3))
    captured(torch.ones(3))
    assert len(kept) == 3


rows = torch.zeros(3)


def test_a_global_variable_with_the_name_of_an_attribute() -> None:
    """As in a script: the batch is a global variable too, which the function does not read."""
    global rows

    class Batch:
        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

    captured = fastnn.capture(lambda x: Batch(x).rows + 1, native=True)
    for _ in range(5):
        rows = torch.randn(3)
        same(captured(rows), rows + 1)
    assert len(captured.programs) == 1


def test_views_of_arguments_are_no_other_way_to_reach_them() -> None:
    def penalty(x: Tensor) -> tuple[Tensor, Any]:
        y = x[1:].detach().requires_grad_()
        (y.square() * x[0]).sum().backward()
        return x[0] * 2, y.grad

    captured = fastnn.capture(penalty, native=True)
    for _ in range(5):
        x = torch.randn(3)
        same(captured(x), penalty(x))


class Noisy(nn.Module):
    """Methods besides forward that depend on training."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def act(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)

    def inner(self, x: Tensor) -> Tensor:
        return self.dropout.forward(x)

    @fastnn.capture
    def method(self, x: Tensor) -> Tensor:
        return self.act(x)


class Agent:
    """An object with a module."""

    def __init__(self, module: Noisy) -> None:
        self.modules = {"policy": module}

    @fastnn.capture
    def act(self, x: Tensor) -> Tensor:
        return self.modules["policy"].act(x)


noisy = Noisy()


def _decorated(module: Noisy) -> Any:
    def plain(x: Tensor) -> Tensor:
        return module.act(x)

    @functools.wraps(plain)
    def wrapper(x: Tensor) -> Tensor:
        return plain(x)

    return wrapper


@pytest.mark.parametrize(
    "fn",
    [
        noisy.act,
        noisy.inner,
        noisy.method,
        noisy.dropout.forward,
        Agent(noisy).act,
        lambda x: noisy.act(x),
        lambda x, modules=(noisy,): modules[0].act(x),
        functools.partial(Noisy.act, noisy),
        _decorated(noisy),
    ],
    ids=["bound", "child", "method", "forward", "self", "global", "default", "partial", "decorated"],
)
def test_modules_that_are_not_called_are_watched(fn: Any) -> None:
    captured = fn if isinstance(fn, fastnn.capture(fn).__class__) else fastnn.capture(fn)
    ones = torch.ones(200)
    for _ in range(5):
        assert (captured(ones) == 0).any()
    noisy.eval()
    try:
        assert (captured(ones) == 1).all()
    finally:
        noisy.train()


def test_modules_in_a_closure_are_watched() -> None:
    modules = [Noisy()]
    captured = fastnn.capture(lambda x: modules[0].act(x))
    for _ in range(5):
        captured(torch.ones(200))
    modules[0].eval()
    assert (captured(torch.ones(200)) == 1).all()


@pytest.fixture
def _validating() -> Iterator[None]:
    """The default: torch.compile leaves it off."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    yield
    Distribution.set_default_validate_args(before)


@pytest.mark.filterwarnings("ignore:.*the length of elsewhere while it runs")
@pytest.mark.usefixtures("_validating")
def test_distributions_validate_while_recording() -> None:
    """In the recording too; other threads are not affected."""
    elsewhere = []

    def sample(mean: Tensor, scale: Tensor, covariance: Tensor) -> tuple[Tensor, ...]:
        thread = threading.Thread(target=lambda: elsewhere.append(Distribution._validate_args))
        thread.start()
        thread.join()
        probabilities = scale / (scale + 1)
        normal = Normal(mean, scale).sample()
        return normal, MultivariateNormal(mean, covariance).mean, Geometric(probabilities).mean

    captured = fastnn.capture(sample)
    good = torch.zeros(2), torch.ones(2), torch.eye(2)
    for call in range(4):
        with pytest.raises(ValueError, match="to satisfy the constraint"):
            fastnn.capture(sample)(torch.zeros(2), -torch.ones(2), torch.eye(2))
        if call == 1:  # the recorded one
            with pytest.raises(ValueError, match="to satisfy the constraint"):
                captured(torch.zeros(2), -torch.ones(2), torch.eye(2))
        captured(*good)
    assert all(elsewhere)
    assert len(captured.programs) == 1
