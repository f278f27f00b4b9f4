"""What a program has replaced in torch or fastnn is noticed, and its undoing too."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import fastnn
from fastnn import _dispatch, _replaced
from fresh import Fresh, output

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

FUNCTIONS = [(owner, name) for owner, name, _ in _replaced.functions._names]
LOSSES = [(owner, name) for owner, name, _ in _replaced.losses._names]
CLASSES = [(owner, name) for owner, name, _ in _replaced.classes._names]


def test_the_names_that_are_watched() -> None:
    """Listed explicitly, so that none disappears together with its test."""
    functions = {(owner.__name__, name) for owner, name in FUNCTIONS}
    own = ("linear", "relu", "silu", "gelu", "cross_entropy")
    assert functions >= {("torch.nn.functional", name) for name in own}
    assert functions >= {("torch", name) for name in ("relu", "sigmoid", "tanh")}
    of_steps = {(owner.__name__, name) for owner, name in LOSSES}
    own = ("log_softmax", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
    own += ("binary_cross_entropy_with_logits",)
    assert of_steps >= {("torch.nn.functional", name) for name in own} | {("torch", "log_softmax")}
    layers = ("Linear", "ReLU", "Sigmoid", "Tanh", "GELU", "SiLU", "Sequential", "Flatten", "Identity")
    losses = ("CrossEntropyLoss", "NLLLoss", "MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
    names = (*layers, "LogSoftmax", *losses, "BCEWithLogitsLoss")
    theirs = [getattr(torch.nn, kind) for kind in names]
    ours = [fastnn.nn.Linear, fastnn.nn.ReLU, fastnn.nn.Sequential, fastnn.nn.CrossEntropyLoss]
    classes = set(CLASSES)
    assert classes >= {(kind, "forward") for kind in (*theirs, *ours)}
    assert classes >= {(kind, "__getattr__") for kind in theirs}
    assert classes >= {(torch.nn.Module, "__call__"), (torch.nn.Sequential, "__iter__")}
    assert classes >= {(torch.Tensor, "backward"), (torch.Tensor, "log_softmax")}


def _id(value: Any) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("owner", "name"), FUNCTIONS, ids=_id)
def test_a_replaced_function(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert _replaced.replaced_function() is None
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *args, **kwargs: None)
            assert _replaced.replaced_function() == f"{owner.__name__}.{name} was replaced"
            assert fastnn.explain(fastnn.functional.gram_matrix, torch.ones(2, 3)).decisions[0].reason
        assert fastnn.explain(fastnn.functional.gram_matrix, torch.ones(2, 3)).decisions[0].reason is None
    assert _replaced.replaced_class() is None


@pytest.mark.parametrize(("owner", "name"), LOSSES, ids=_id)
def test_a_replaced_loss(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a step checks it: single ops continue."""
    for _ in range(2):
        assert _replaced.losses.replaced() is None
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *args, **kwargs: None)
            assert (_replaced.losses.replaced() or "").endswith(f"{owner.__name__}.{name} was replaced")
            assert fastnn.explain(fastnn.functional.gram_matrix, torch.ones(2, 3)).decisions[0].reason is None


@pytest.mark.parametrize(("owner", "name"), CLASSES, ids=_id)
def test_a_replaced_method(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert _replaced.replaced_class() is None
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *args, **kwargs: None, raising=False)
            reason = _replaced.replaced_class()
            assert reason is not None
            assert reason.endswith(f"{owner.__name__}.{name} was replaced")
    assert _replaced.replaced_class() is None


def test_other_changes_of_a_class_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        monkeypatch.setattr(torch.nn.Linear, "adapter", i, raising=False)
        assert _replaced.replaced_class() is None


def test_a_property_on_the_class_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes precedence over the parameters of that name, in a chain and in a single layer."""
    model, x = fastnn.nn.MLP([5, 4, 3]), torch.randn(40, 5)
    plain = model(x), model[0](x)
    doubled = property(lambda layer: 2 * layer._parameters["weight"])
    monkeypatch.setattr(torch.nn.Linear, "weight", doubled, raising=False)
    assert _replaced.replaced_class() == "torch.nn.modules.linear.Linear.weight was replaced"
    torch.testing.assert_close(model[0](x), F.linear(x, model[0].weight, model[0].bias))
    torch.testing.assert_close(model(x), model[2](torch.relu(model[0](x))))
    monkeypatch.undo()
    assert all(torch.equal(a, b) for a, b in zip((model(x), model[0](x)), plain, strict=True))


@pytest.mark.parametrize(
    ("place", "question"),
    [("torch.nn.Linear.forward", "replaced_class"), ("torch.nn.functional.linear", "replaced_function")],
)
def test_replaced_before_the_import(place: str, question: str, run_fresh: Fresh) -> None:
    code = f"""
import torch
{place} = lambda *args: None
from fastnn import _replaced
assert _replaced.{question}().endswith("was replaced")
"""
    output(run_fresh(code))


def test_what_is_not_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    scope: dict[str, Any] = {}
    exec(
        compile("def forward(self, x): return x", f"{Path(torch.__file__).parent}ish/layers.py", "exec"),
        scope,
    )
    original = torch.nn.Linear.forward
    assert _replaced.original(torch.nn.Linear, "forward") is original
    wrapped = functools.wraps(scope["forward"])(original.__class__(original.__code__, {}))
    # The second is torch's own wrapper around a foreign function, the third not a function.
    for mine in (scope["forward"], wrapped, mock.MagicMock()):
        monkeypatch.setattr(torch.nn.Linear, "forward", mine)
        assert _replaced.original(torch.nn.Linear, "forward") not in (original, mine)


def test_a_function_that_torch_ops_replace_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = F.linear

    def mine(*args: Any) -> Any:
        calls.append(args)
        return original(*args)

    x, w = torch.randn(3, 4), torch.randn(2, 4)
    expected = F.linear(x, w)
    monkeypatch.setattr(F, "linear", mine)
    assert torch.equal(fastnn.functional.linear(x, w), expected)
    assert len(calls) == 1
