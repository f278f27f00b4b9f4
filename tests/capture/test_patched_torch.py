"""A function of torch that a program has replaced runs in captured functions, too."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import adam, nadam, sgd

import fastnn
from twins import Twins, batch, classify, net


def _compare(twins: Twins) -> None:
    for _ in range(4):
        twins.call(*batch())


def _recorded(twins: Twins, when: str) -> None:
    if when == "after it is recorded":
        _compare(twins)
        assert twins.programs


WHEN = pytest.mark.parametrize("when", ["before it is recorded", "after it is recorded"])


@pytest.mark.parametrize(
    ("owner", "name"), [(F, "layer_norm"), (torch, "layer_norm"), (torch.autograd, "backward")]
)
@WHEN
def test_what_layers_and_tensors_call(
    owner: ModuleType, name: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(owner, name)

    def mine(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return original(x.square(), *args, **kwargs)

    twins = Twins(classify, net(nn.LayerNorm(16)), torch.optim.Adam)
    _recorded(twins, when)
    monkeypatch.setattr(owner, name, mine)
    _compare(twins)


def _with_operators(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = F.mse_loss(1 - (-(model(x)[:] + 1.0)) ** 2, y)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("name", ["__add__", "__rsub__", "__neg__", "__pow__", "__getitem__"])
def test_operators_of_tensors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(Tensor, name)
    model = nn.Linear(3, 2)
    captured = fastnn.capture(partial(_with_operators, model), native=True)
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    for _ in range(4):
        model.zero_grad()
        captured(x, y)
    assert captured.programs
    monkeypatch.setattr(Tensor, name, lambda *args: original(*args) * 0.5)
    for _ in range(4):
        model.zero_grad()
        torch.testing.assert_close(captured(x, y), _with_operators(model, x, y))


def _halved(module: nn.Module, name: str) -> Any:
    value = nn.Module.__getattr__(module, name)
    return value * 0.5 if name == "weight" else value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eps", property(lambda module: 0.5)),
        ("weight", property(lambda module: module._parameters["weight"] * 0.5)),
        ("__getattr__", _halved),
    ],
)
def test_attributes_that_a_class_of_torch_gets(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.LayerNorm(8)
    captured = fastnn.capture(lambda x: model(x), native=True)
    x = torch.randn(4, 8)
    with torch.no_grad():
        for _ in range(4):
            before = captured(x)
        assert captured.programs
        monkeypatch.setattr(nn.LayerNorm, name, value, raising=False)
        for _ in range(4):
            after = captured(x)
            torch.testing.assert_close(after, model(x))
    assert not torch.equal(before, after)


@pytest.mark.parametrize(("kind", "module"), [("Adam", adam), ("SGD", sgd), ("NAdam", nadam)])
@WHEN
def test_what_a_step_calls(kind: str, module: ModuleType, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = Twins(classify, net(), getattr(torch.optim, kind))
    _recorded(twins, when)
    monkeypatch.setattr(module, kind.lower(), lambda *_, **options: None)
    with pytest.warns(UserWarning, match=f"{module.__name__}.{kind.lower()} was replaced"):
        _compare(twins)
