"""Names that are missing while a function is recorded, and code that is reached through torch's."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from twins import same


def _has(owner: object, name: str) -> bool:
    return hasattr(owner, name)


class Net(nn.Module):
    KEY = "other"

    def __init__(self) -> None:
        super().__init__()
        self.queue = deque([SimpleNamespace(gain=1.0)])

    def by_attribute(self, x: Tensor) -> Tensor:
        try:
            return x * self.gain
        except AttributeError:
            return x * 1

    def by_default(self, x: Tensor) -> Tensor:
        return x * getattr(self, "gain", 1.0)

    def by_a_name_elsewhere(self, x: Tensor) -> Tensor:
        return x * getattr(self, self.KEY, 1.0)

    def by_a_helper(self, x: Tensor) -> Tensor:
        return x * self.gain if _has(self, "gain") else x * 1

    def by_a_variable(self, x: Tensor) -> Tensor:
        try:
            return x * GAIN  # type: ignore[name-defined]
        except NameError:
            return x * 1

    def by_a_queue(self, x: Tensor) -> Tensor:
        return x * self.queue[0].gain


def _set(net: Net, **values: Any) -> None:
    for name, value in values.items():
        setattr(net, name, value)


CHANGES: dict[str, tuple[str, Any]] = {
    "an attribute": ("by_attribute", lambda net, patch: _set(net, gain=3.0)),
    "an attribute of the class": (
        "by_attribute",
        lambda net, patch: patch.setattr(Net, "gain", 3.0, raising=False),
    ),
    "one with a default": ("by_default", lambda net, patch: _set(net, gain=3.0)),
    "one named elsewhere": ("by_a_name_elsewhere", lambda net, patch: _set(net, other=3.0)),
    "one that a helper asks for": ("by_a_helper", lambda net, patch: _set(net, gain=3.0)),
    "a global variable": (
        "by_a_variable",
        lambda net, patch: patch.setitem(globals(), "GAIN", 3.0),
    ),
    "one of an object in a deque": ("by_a_queue", lambda net, patch: setattr(net.queue[0], "gain", 3.0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_there_later_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, change = CHANGES[name]
    net, x = Net(), torch.ones(3)
    captured = fastnn.capture(getattr(net, method))
    for _ in range(5):
        same(captured(x), x)
    assert captured.programs
    change(net, monkeypatch)
    for _ in range(5):
        same(captured(x), 3 * x)


@pytest.mark.parametrize(
    ("owner", "name"), [(torch, "layer_norm"), (F, "layer_norm"), (nn.Module, "__call__")]
)
def test_what_the_replacement_of_a_function_of_torch_reads(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, scale = getattr(owner, name), SimpleNamespace(by=1.0)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: original(*args, **kwargs) * scale.by)
    net, x = nn.LayerNorm(4), torch.randn(3, 4)
    captured = fastnn.capture(lambda x: net(x).detach())
    for scale.by in (1.0, 3.0):
        for _ in range(5):
            same(captured(x), net(x).detach())
    assert captured.programs
