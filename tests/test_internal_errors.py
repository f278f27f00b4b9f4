"""Only what kernels do not cover is left to torch: an error on the way to a kernel is raised."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from fastnn import _dispatch
from train_steps import OPTIMIZERS, chain, classes_of

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


class Broken:
    """A number whose value cannot be read."""

    def __float__(self) -> float:
        raise KeyError("no value")


class BrokenFlag:
    def __bool__(self) -> bool:
        raise KeyError("no flag")


class BrokenPair:
    def __iter__(self) -> Any:
        raise KeyError("no pair")


OPTIONS = [("lr", Broken()), ("weight_decay", Broken()), ("maximize", BrokenFlag()), ("betas", BrokenPair())]


@pytest.mark.parametrize(("option", "value"), OPTIONS)
@pytest.mark.parametrize("kind", ["Adam", "SGD", "Adagrad", "RMSprop"])
def test_an_option_that_raises(option: str, value: Any, kind: str) -> None:
    model = chain([6, 5])
    optimizer = getattr(fastnn.optim, kind)(model.parameters(), lr=0.1)
    model(torch.randn(2, 6, dtype=torch.float64)).sum().backward()
    optimizer.step()
    if option not in optimizer.param_groups[0]:  # betas are Adam's
        return
    optimizer.param_groups[0][option] = value
    with pytest.raises(KeyError, match="no "):
        optimizer.step()


@pytest.mark.parametrize(("option", "value"), OPTIONS)
@pytest.mark.parametrize("call", ["step", "epoch"])
def test_an_option_that_raises_in_a_step(option: str, value: Any, call: str) -> None:
    model = chain([6, 5])
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"](model.parameters()))
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step.optimizer.param_groups[0][option] = value
    before = model[0].weight.detach().clone()
    with pytest.raises(KeyError, match="no "):
        step(x, y) if call == "step" else step.epoch(x, y, 3)
    assert torch.equal(model[0].weight, before)
    assert len(step.optimizer.state) == 0


def _raise(*_: Any, **__: Any) -> Any:
    raise KeyError("no tensor")


def test_an_error_while_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    monkeypatch.setattr(torch.Tensor, "new_empty", _raise)
    with pytest.raises(KeyError, match="no tensor"):
        fastnn.nn.utils.clip_grad_norm_([p], 1.0)
    assert torch.equal(p.grad, torch.ones(3))


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("weight_decay", None, "NoneType, not a number"),
        ("eps", "1e-8", "str, not a number"),
        ("weight_decay", torch.zeros(2), "several numbers"),
    ],
)
def test_what_is_not_a_number_is_left_to_torch(option: str, value: Any, why: str) -> None:
    model = chain([6, 5])
    optimizer = fastnn.optim.Adam(model.parameters())
    model(torch.randn(2, 6, dtype=torch.float64)).sum().backward()
    optimizer.param_groups[0][option] = value
    seen: list[Any] = []
    with _dispatch.recording(seen.append), pytest.raises((TypeError, RuntimeError)):
        optimizer.step()
    assert why in next(d.reason for d in seen if d.op == "adam")


def test_a_loss_with_an_option_that_is_not_a_number() -> None:
    model = chain([6, 5])
    loss = fastnn.nn.CrossEntropyLoss()
    loss.z_loss = "a little"
    step = fastnn.TrainStep(model, loss, OPTIMIZERS["sgd"](model.parameters()))
    seen: list[Any] = []
    with _dispatch.recording(seen.append), pytest.raises(Exception):  # noqa: B017, PT011  # torch's own
        step(torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5))
    assert "not a number" in next(d.reason for d in seen if d.op == "chain_step")


@pytest.mark.parametrize(
    "gradient",
    [
        torch.ones(3).to_sparse(),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3, device="meta"),
    ],
    ids=["sparse", "complex", "meta"],
)
def test_tensors_that_kernels_cannot_read_are_left_to_torch(gradient: torch.Tensor) -> None:
    p = nn.Parameter(torch.ones_like(gradient, layout=torch.strided))
    p.grad = gradient
    seen: list[Any] = []
    with _dispatch.recording(seen.append), contextlib.suppress(NotImplementedError):  # torch's own
        fastnn.nn.utils.clip_grad_norm_([p], 1.0)
    assert seen[0].reason is not None


def test_an_error_while_polyak_reads_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Tensor) -> bool:
        raise KeyError("broken")

    monkeypatch.setattr(Tensor, "is_neg", broken, raising=False)
    with pytest.raises(KeyError, match="broken"):
        _dispatch.cpu.polyak([torch.ones(2)], [torch.zeros(2)], 0.5)


class Interrupted:
    """What equals others of its kind, but for the first time that one of them is asked."""

    interrupts = [KeyboardInterrupt()]

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        if self.interrupts:
            raise self.interrupts.pop()
        return isinstance(other, Interrupted)


class OnlyWithItself:
    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        raise ValueError("not to be compared")


def test_values_that_cannot_be_compared_are_different_ones() -> None:
    scaled = fastnn.capture(lambda x, how: x * how.number)
    x, how = torch.ones(3), OnlyWithItself(2)
    for _ in range(4):
        scaled(x, how)
    assert scaled.programs
    assert scaled(x, OnlyWithItself(3)).tolist() == [3, 3, 3]


def test_an_interrupt_while_arguments_are_compared() -> None:
    double = fastnn.capture(lambda x, how: x * 2)
    x, how = torch.ones(3), Interrupted()
    for _ in range(4):
        double(x, how)
    assert double.programs
    with pytest.raises(KeyboardInterrupt):
        double(x, Interrupted())
