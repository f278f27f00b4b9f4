"""A step or zero_grad that replaces the one of torch's optimizers runs in fastnn's too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

import fastnn
from fastnn import _dispatch

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

KINDS = ["Adam", "AdamW", "SGD", "Adagrad", "RMSprop"]


def made(kind: Any) -> tuple[torch.optim.Optimizer, Tensor]:
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    return kind([param], lr=0.1), param


def is_native(optimizer: torch.optim.Optimizer) -> bool:
    return [reason for _, reason in fastnn.explain(optimizer.step).decisions] == [None]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("how", ["made as fastnn's", "converted", "scheduled"])
def test_a_replaced_step(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = getattr(torch.optim, name), getattr(fastnn.optim, name)
    made(theirs)  # torch has wrapped its step now: that replaces nothing
    optimizer, param = made(ours if how == "made as fastnn's" else theirs)
    if how == "scheduled":
        lr_scheduler.StepLR(optimizer, 1)
    fastnn.convert(optimizer)
    assert is_native(optimizer)
    calls: list[Any] = []
    original = theirs.step

    def mine(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        calls.append(self)
        return original(self, closure)

    with monkeypatch.context() as patch:
        patch.setattr(theirs, "step", mine)
        before = param.detach().clone()
        hook = optimizer.register_step_post_hook(lambda *_: calls.append("hook"))
        assert optimizer.step(lambda: 3.0) == 3.0
        assert fastnn.explain(optimizer.step).decisions == ()
        hook.remove()
        assert calls == [optimizer, "hook"] * 2
        assert not torch.equal(param, before)
    assert is_native(optimizer)
    assert calls.count(optimizer) == 2


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("called", ["function", "_init_group"])
def test_what_a_step_calls_is_replaced(name: str, called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = getattr(torch.optim, name)
    module = sys.modules[torch.optim.Adam.__module__ if name == "AdamW" else theirs.__module__]
    optimizer, param = made(getattr(fastnn.optim, name))
    optimizer.step()
    owner, attribute = (module, module.__name__.split(".")[-1]) if called == "function" else (theirs, called)
    mine = mock.Mock(side_effect=getattr(owner, attribute))
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, lambda *args, **kwargs: mine(*args, **kwargs))
        before = param.detach().clone()
        optimizer.step()
        assert mine.call_count == 1
        assert not torch.equal(param, before)
    assert is_native(optimizer)


@pytest.mark.parametrize("wrapped_by", ["torch's", "fastnn's"])
def test_a_step_replaced_before_an_optimizer_is_made(
    wrapped_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, closure=None: calls.append(self))
    if wrapped_by == "torch's":
        made(torch.optim.SGD)
    optimizer, param = made(fastnn.optim.SGD)
    optimizer.register_step_post_hook(lambda *_: calls.append("hook"))
    optimizer.step()
    assert calls == [optimizer, "hook"]
    assert torch.equal(param, torch.ones(3))


def test_a_mocked_step_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, param = made(fastnn.optim.RMSprop)
    monkeypatch.setattr(torch.optim.RMSprop, "step", mock.MagicMock())
    optimizer.step()
    torch.optim.RMSprop.step.assert_called_once()
    assert torch.equal(param, torch.ones(3))


def test_a_replaced_zero_grad_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, param = made(fastnn.optim.Adam)
    calls: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Optimizer, "zero_grad", lambda self, set_to_none=True: calls.append(self))
        optimizer.zero_grad()
        assert calls == [optimizer]
        assert param.grad is not None
    optimizer.zero_grad()
    assert param.grad is None
