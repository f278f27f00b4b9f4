"""Memory of other types, gradients, and their state after a call fails."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from twins import same


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_after_an_error(set_to_none: bool) -> None:
    """They are those from before the call, or those left by torch."""
    models = [nn.Linear(3, 4) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())

    def make(model: nn.Linear) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(x: Tensor, i: Tensor) -> Tensor:
            optimizer.zero_grad(set_to_none=set_to_none)
            model(x).square().sum().backward()
            optimizer.step()
            return model(x).detach().gather(1, i)

        return step

    eager, captured = make(models[0]), fastnn.capture(make(models[1]), keep_grad=True, native=True)
    i = torch.zeros(2, 1, dtype=torch.int64)
    for _ in range(4):
        x = torch.randn(2, 3)
        same(captured(x, i), eager(x, i))
    before = [p.grad.clone() for p in models[1].parameters() if p.grad is not None]
    for step in (eager, captured):
        with pytest.raises(RuntimeError, match="index 9 is out of bounds for dimension 1 with size 4"):
            step(x, i + 9)
    same(list(models[1].parameters()), list(models[0].parameters()))
    same([p.grad for p in models[1].parameters()], before if set_to_none else
         [p.grad for p in models[0].parameters()])  # fmt: skip


def _signs(x: Tensor) -> Tensor:
    return (x.double() * 2).view(torch.int64) + 1


def _rotated(x: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(x * 2) * 1j)


def _both(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    bits = y.view(torch.int32) ^ 1
    y.add_(1)
    return bits, y.view(torch.int16)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.view(torch.uint8) + 1,
        lambda x: x.view(torch.uint8),
        lambda x: (x * 2).view(torch.uint8),
        lambda x: torch.view_as_complex(x),
        lambda x: torch.view_as_complex(x * 2).imag * 3,
        lambda x: torch.view_as_complex(x[1:])[1:] * 2,
        _signs,
        _rotated,
        _both,
    ],
)
def test_memory_that_is_read_as_another_type(fn: Any) -> None:
    captured = fastnn.capture(fn, native=True)
    for i in range(5):
        x = torch.arange(20.0)[2 * i :][:10].view(5, 2)
        same(captured(x), fn(x), rtol=0, atol=0)
    assert len(captured.programs) == 1


@pytest.mark.parametrize("keep_grad", [True, False])
def test_complex_parameters(keep_grad: bool) -> None:
    weights = [nn.Parameter(torch.arange(3.0) * (1 + 2j)) for _ in range(2)]

    def make(weight: nn.Parameter) -> Any:
        optimizer = torch.optim.Adam([weight], lr=0.1)

        def step(x: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = (weight * x).abs().square().sum()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    eager, captured = make(weights[0]), fastnn.capture(make(weights[1]), keep_grad=keep_grad)
    for call in range(6):
        x = torch.randn(3)
        if call == 1 and keep_grad:
            with pytest.warns(fastnn.EagerStepWarning, match="a gradient of torch.complex64"):
                same(captured(x), eager(x))
        else:
            same(captured(x), eager(x))
        same(weights[1], weights[0])
    assert len(captured.programs) == (0 if keep_grad else 1)


@pytest.mark.parametrize("kind", ["script", "trace"])
def test_script_modules_are_recorded(kind: str) -> None:
    plain = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with pytest.warns(DeprecationWarning, match="deprecated"):
        model = torch.jit.script(plain) if kind == "script" else torch.jit.trace(plain, torch.ones(1, 3))
    x = torch.randn(4, 3)
    captured = fastnn.capture(lambda x: model(x).detach())
    captured(x)
    with pytest.warns(fastnn.EagerStepWarning, match="not watched"):
        captured(x)
    beside = fastnn.capture(lambda x: (model is None, plain(x).detach())[1], native=True)
    for _ in range(4):
        same([captured(x), beside(x)], [plain(x), plain(x)])


def test_memory_of_other_types_that_is_replaced() -> None:
    shift = nn.Parameter(torch.arange(3, dtype=torch.int32), requires_grad=False)
    captured = fastnn.capture(lambda x: x + shift)
    for _ in range(4):
        captured(torch.ones(3))
    shift.data = torch.arange(20, dtype=torch.int32)[4:7]
    same(captured(torch.ones(3)), torch.tensor([5.0, 6.0, 7.0]))
    shift.data = torch.tensor([7], dtype=torch.int32)
    same(captured(torch.ones(3)), torch.full((3,), 8.0))
    shift.data = torch.ones(5, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="must match"):
        captured(torch.ones(3))


def test_the_default_dtype_belongs_to_a_program() -> None:
    captured = fastnn.capture(lambda x: x + torch.ones(3))
    for _ in range(4):
        captured(torch.ones(3))
    torch.set_default_dtype(torch.float64)
    try:
        for _ in range(4):
            assert captured(torch.ones(3)).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert captured(torch.ones(3)).dtype is torch.float32
    assert len(captured.programs) == 2


def _accumulating(model: nn.Linear, optimizer: Any, x: Tensor, flag: bool) -> Tensor:
    if not flag:
        optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    return x.sum()


def _logging(model: nn.Linear, optimizer: Any, x: Tensor, flag: bool) -> Tensor:
    said = x.sum() if not flag or model.weight.grad is None else model.weight.grad.norm()
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    return said


def _reading(model: nn.Linear, optimizer: Any, x: Tensor, flag: bool) -> Tensor | float:
    said = x.sum() if not flag or model.weight.grad is None else model.weight.grad.norm().item()
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    return said


@pytest.mark.parametrize("fn", [_accumulating, _logging, _reading])
def test_gradients_that_another_signature_needs(fn: Any) -> None:
    """The first such call finds zeros, which is reported; then they are kept."""
    models = [nn.Linear(3, 4) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in models]
    captured = fastnn.capture(lambda x, flag: fn(models[1], optimizers[1], x, flag))
    for _ in range(5):
        x = torch.randn(2, 3)
        same(captured(x, False), fn(models[0], optimizers[0], x, False))
    with pytest.warns(fastnn.EagerStepWarning) as told:
        captured(x, True)
    assert "keep_grad=True" in str(told[0].message)
    fn(models[0], optimizers[0], x, True)
    for model, optimizer in zip(models, optimizers, strict=True):
        model.load_state_dict(models[0].state_dict())
        optimizer.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastnn.EagerStepWarning)
        for call in range(20):
            x = torch.randn(2, 3)
            found, expected = (
                step(x, call % 3 == 2)
                for step in (captured, lambda x, flag: fn(models[0], optimizers[0], x, flag))
            )
            torch.testing.assert_close(found, expected)
            same(list(models[1].parameters()), list(models[0].parameters()))
    assert captured.programs


@pytest.mark.parametrize("check", [True, False])
def test_gradients_that_are_read_as_such(check: bool) -> None:
    """By a signature that uses nothing else of the model."""
    models = [nn.Linear(3, 1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())

    def make(model: nn.Linear) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def part(x: Tensor, what: str) -> Tensor | None:
            if what == "norm":
                assert model.weight.grad is not None
                return model.weight.grad.norm()
            model(x).square().mean().backward()
            if what == "last":
                optimizer.step()
                optimizer.zero_grad()
            return None

        return part

    eager, captured = make(models[0]), fastnn.capture(make(models[1]), check=check, native=True)
    for call in range(24):
        x = torch.randn(2, 3)
        for what in ("first", "norm", "last") if call < 12 else ("first", "norm", "first", "norm", "last"):
            same([captured(x, what)], [eager(x, what)])
    same(list(models[1].parameters()), list(models[0].parameters()))
