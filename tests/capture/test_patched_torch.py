"""A function of torch that a program has replaced runs in captured functions, too."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import adam, nadam, sgd

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


@pytest.mark.parametrize(("kind", "module"), [("Adam", adam), ("SGD", sgd), ("NAdam", nadam)])
@WHEN
def test_what_a_step_calls(kind: str, module: ModuleType, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = Twins(classify, net(), getattr(torch.optim, kind))
    _recorded(twins, when)
    monkeypatch.setattr(module, kind.lower(), lambda *_, **options: None)
    with pytest.warns(UserWarning, match=f"{module.__name__}.{kind.lower()} was replaced"):
        _compare(twins)
