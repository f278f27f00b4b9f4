"""Replacements in torch's or fastnn's classes also run in converted modules and in fused chains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn
from fastnn import _dispatch, nn

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

T = torch.nn
ACTIVATIONS = [T.ReLU, T.Sigmoid, T.Tanh, T.GELU, T.SiLU]
FORWARDS = [T.Linear, *ACTIVATIONS, T.Sequential]


def doubling(kind: type[T.Module], name: str = "forward") -> Any:
    """A replacement that doubles the method's result."""
    original = getattr(kind, name)

    def mine(self: Any, *args: Any) -> Tensor:
        return 2 * original(self, *args)

    return mine


def chain(activation: type[T.Module]) -> T.Sequential:
    torch.manual_seed(0)
    return T.Sequential(T.Linear(4, 5), activation(), T.Linear(5, 3), activation(), T.Dropout(0.0))


def ops(fn: Any, *args: Any) -> list[tuple[str, str | None]]:
    return list(fastnn.explain(fn, *args).decisions)


def assert_native_again(model: T.Module, x: Tensor) -> None:
    assert ops(model, x) == [("mlp", None)]


def assert_same(mine: T.Module, theirs: T.Module, x: Tensor) -> None:
    """The same values and gradients, up to the rounding of two small layers."""
    found = []
    for model in (mine, theirs):
        y = model(x)
        gradients = torch.autograd.grad(y.square().sum(), list(model.parameters()))
        found.append([y, *gradients])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", FORWARDS)
@pytest.mark.parametrize("converted", ["before", "after"])
def test_a_replaced_forward_of_torch_is_called(
    kind: type[T.Module], converted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = chain(kind if kind in ACTIVATIONS else T.ReLU)
    mine, x = copy.deepcopy(theirs), torch.randn(6, 4)
    if converted == "before":
        assert_native_again(fastnn.convert(mine), x)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", doubling(kind))
        fastnn.convert(mine)
        assert_same(mine, theirs, x)
    assert_same(mine, theirs, x)
    assert_native_again(mine, x)


@pytest.mark.parametrize("name", ["__call__", "_call_impl"])
def test_a_replaced_forward_of_every_module_is_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, x = chain(T.ReLU), torch.randn(6, 4)
    mine = fastnn.convert(copy.deepcopy(theirs))
    with monkeypatch.context() as patch:
        patch.setattr(T.Module, name, doubling(T.Module, name))
        assert_same(mine, theirs, x)
        assert not torch.equal(theirs(x), theirs.forward(x))
    assert_native_again(mine, x)


@pytest.mark.parametrize("name", ["__call__", "forward"])
@pytest.mark.parametrize("kind", [nn.Linear, nn.ReLU, nn.Sequential])
def test_a_replaced_forward_of_fastnn_is_called(
    kind: type[T.Module], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, x = chain(T.ReLU), torch.randn(6, 4)
    mine = fastnn.convert(copy.deepcopy(theirs))
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, doubling(kind, name))
        patch.setattr(kind.__base__, name, doubling(kind.__base__, name))
        if name == "forward":  # ours takes precedence
            patch.setattr(kind, name, kind.__base__.forward)
        assert_same(mine, theirs, x)
    assert_native_again(mine, x)


def test_a_lone_layer_beside_a_replaced_one_stays_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(T.Linear, "forward", doubling(T.Linear))
    relu, loss = nn.ReLU(), nn.CrossEntropyLoss()
    assert ops(relu, torch.ones(3)) == [("relu", None)]
    assert ops(loss, torch.ones(2, 3), torch.tensor([0, 1])) == [("cross_entropy", None)]


def test_a_layer_with_an_activation_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(4, 3, activation="relu"), torch.randn(5, 4)
    monkeypatch.setattr(T.Linear, "forward", lambda self, x: F.linear(x, self.weight) - 0.25)
    torch.testing.assert_close(layer(x), F.relu(F.linear(x, layer.weight) - 0.25))
    assert ops(layer, x) == []


def test_a_replaced_forward_of_a_loss_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = T.CrossEntropyLoss(label_smoothing=0.1)
    mine = fastnn.convert(copy.deepcopy(theirs))
    x, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 2])
    with monkeypatch.context() as patch:
        patch.setattr(T.CrossEntropyLoss, "forward", doubling(T.CrossEntropyLoss))
        assert torch.equal(mine(x, target), theirs(x, target))
        with_z_loss = nn.CrossEntropyLoss(label_smoothing=0.1, z_loss=0.5)
        assert ops(with_z_loss, x, target) == [("cross_entropy", None)]  # torch's knows of no z_loss
    assert ops(mine, x, target) == [("cross_entropy", None)]


@pytest.mark.parametrize(
    ("theirs", "ours", "x"),
    [(T.ReLU, nn.ReLU, torch.ones(3)), (T.Sequential, nn.Sequential, torch.ones(2, 4))],
)
def test_fastnns_own_forward_may_be_put_into_torchs_class(
    theirs: type[T.Module], ours: type[T.Module], x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theirs, "forward", ours.forward)
    for kind in (theirs, ours):
        assert torch.equal(kind()(x), x)


def test_explain_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(T.Tanh, "forward", doubling(T.Tanh))
    with_tanh, without = (
        fastnn.explain(fastnn.convert, chain(kind)).conversions[0].note for kind in (T.Tanh, T.ReLU)
    )
    assert with_tanh == "torch.nn.modules.activation.Tanh.forward was replaced"
    assert without == "one op: 0 to 3"
