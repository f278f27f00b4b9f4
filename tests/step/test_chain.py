"""linear_chain: which models are nothing but a chain of linear layers, and why others are not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

import fastnn
from fastnn import _dispatch
from fastnn._dispatch import Unsupported
from fastnn.capture.watch import watch_globals
from fastnn.step.chain import LinearChain, linear_chain

T = torch.nn


def nested() -> T.Sequential:
    """Every activation, and nested Sequentials."""
    head = T.Sequential(T.Linear(4, 3), T.GELU("tanh"), T.Sequential(T.Identity(), T.Linear(3, 2)))
    return T.Sequential(
        *(T.Flatten(), T.Linear(6, 5), T.ReLU(), T.Linear(5, 4), T.Tanh(), T.Linear(4, 4), T.SiLU()),
        *(head, T.Sigmoid()),
    )


def holds(chain: LinearChain) -> Callable[[], bool]:
    """A function that tells whether the model is still that chain."""
    watch = _dispatch.cpu.Watch()
    watch_globals(watch)
    chain.watch(watch)
    unchanged: Callable[[], bool] = watch.unchanged
    assert unchanged()
    return unchanged


def why_not(model: T.Module) -> str:
    with pytest.raises(Unsupported) as refusal:
        linear_chain(model)
    return str(refusal.value)


def names(chain: LinearChain) -> list[str | None]:
    return [activation for _, activation in chain]


@pytest.mark.parametrize("convert", [False, True])
def test_a_nested_model_is_a_chain(convert: bool) -> None:
    model = nested()
    linears = [module for module in model.modules() if isinstance(module, T.Linear)]
    x = torch.randn(3, 2, 3)
    want = model(x)
    if convert:
        fastnn.convert(model)
    chain = linear_chain(model)
    assert names(chain) == ["relu", "tanh", "silu", "gelu_tanh", "sigmoid"]
    assert all(layer is linear for (layer, _), linear in zip(chain, linears, strict=True))
    assert chain.flatten
    assert holds(chain)()
    h = x.flatten(1)
    functions = {
        "relu": F.relu,
        "tanh": torch.tanh,
        "silu": F.silu,
        "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
        "sigmoid": torch.sigmoid,
    }
    for layer, activation in chain:
        h = functions[activation](F.linear(h, layer.weight, layer.bias))
    torch.testing.assert_close(h, want)


@pytest.mark.parametrize(
    ("model", "want"),
    [
        (T.Linear(3, 2), [None]),
        (fastnn.nn.Linear(3, 2, activation="relu"), ["relu"]),
        (T.Sequential(T.Linear(3, 2), T.ReLU(), T.Linear(2, 2, bias=False), T.GELU()), ["relu", "gelu"]),
        (fastnn.nn.MLP([4, 3, 2]), ["relu", None]),
        (T.Sequential(T.Identity(), T.Flatten(), T.Linear(3, 2), T.Linear(2, 2)), [None, None]),
        (fastnn.convert(T.Sequential(T.Linear(3, 2), T.Tanh())), ["tanh"]),
    ],
)
def test_these_models_are_chains(model: T.Module, want: list[str | None]) -> None:
    assert names(linear_chain(model)) == want


@pytest.mark.parametrize(
    "model",
    [
        T.Sequential(T.Linear(3, 2), T.ReLU(), T.LogSoftmax(1), T.Identity()),
        T.Sequential(T.Linear(3, 2), T.ReLU(), T.Sequential(T.LogSoftmax(-1))),
    ],
)
def test_the_log_softmax_is_reported(model: T.Module) -> None:
    chain = linear_chain(model)
    assert names(chain) == ["relu"]
    assert chain.log_softmax
    unchanged = holds(chain)
    next(m for m in model.modules() if isinstance(m, T.LogSoftmax)).dim = 0
    assert not unchanged()
    assert not linear_chain(T.Sequential(T.Linear(3, 2))).log_softmax


def test_the_flattening_is_reported() -> None:
    assert linear_chain(T.Sequential(T.Flatten(), T.Linear(3, 2))).flatten
    assert not linear_chain(T.Sequential(T.Linear(3, 2))).flatten


def tied() -> T.Module:
    model = T.Sequential(T.Linear(3, 3), T.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


class Subclass(T.Linear):
    pass


class Written(T.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = T.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (T.ReLU(), "ReLU comes before any linear layer"),
        (T.Sequential(), "it has no linear layer"),
        (T.Sequential(T.Linear(3, 3), T.Dropout()), r"1 \(Dropout\) is not a layer of a chain"),
        (T.Sequential(T.Linear(3, 3), T.ReLU(), T.ReLU()), "2 .ReLU. is a second activation in a row"),
        (T.Sequential(T.Linear(3, 4), T.Linear(3, 3)), "does not take as many features"),
        (T.Sequential(T.Linear(3, 3), T.Flatten(), T.Linear(3, 3)), r"1 \(Flatten\) does not flatten"),
        (T.Sequential(T.Flatten(0), T.Linear(3, 3)), r"0 \(Flatten\) does not flatten"),
        (tied(), "shares a parameter"),
        (T.Sequential(*[T.Linear(3, 3)] * 2), "shares a parameter"),
        (Subclass(3, 3), "Subclass is not a layer"),
        (T.Sequential(T.LazyLinear(3)), "LazyLinear"),
        (Written(), "Written is not a layer of a chain"),
        (T.Sequential(Written()), r"0 \(Written\) is not a layer of a chain"),
        (T.Sequential(T.LogSoftmax(1), T.Linear(3, 3)), r"0 \(LogSoftmax\) comes before any linear layer"),
        (T.Sequential(T.Linear(3, 3), T.LogSoftmax()), "LogSoftmax. is not along the last of two"),
        (T.Sequential(T.Linear(3, 3), T.LogSoftmax(0)), "LogSoftmax. is not along the last of two"),
        (T.Sequential(T.Linear(3, 3), T.LogSoftmax(1), T.Linear(3, 3)), "Linear. comes after log_softmax"),
        (T.Sequential(T.Linear(3, 3), T.LogSoftmax(1), T.ReLU()), "ReLU. comes after log_softmax"),
        (T.Sequential(T.Linear(3, 3), *[T.LogSoftmax(1)] * 2), "LogSoftmax. comes after log_softmax"),
        (T.Sequential(T.Linear(3, 3), T.Softmax(1)), r"1 \(Softmax\) is not a layer of a chain"),
    ],
)
def test_what_is_not_a_chain_says_why(model: T.Module, reason: str) -> None:
    assert re.search(reason, found := why_not(model)), found


def hook(*_: Any) -> None:
    """Change nothing."""


CHANGES: dict[str, Callable[[Any], object]] = {
    "forward hook": lambda m: m[3].register_forward_hook(hook),
    "pre-hook": lambda m: m[7][1].register_forward_pre_hook(hook),
    "backward hook": lambda m: m[7].register_full_backward_hook(hook),
    "backward pre-hook": lambda m: m.register_full_backward_pre_hook(hook),
    "forward": lambda m: setattr(m[6], "forward", F.silu),
}
REPLACEMENTS: dict[str, Callable[[Any], object]] = {
    "layer": lambda m: setattr(m, "1", T.Linear(6, 5)),
    "layer of a Sequential": lambda m: m[7].__setitem__(0, T.Linear(4, 3)),
    "longer Sequential": lambda m: m[7].append(T.ReLU()),
    "class": lambda m: fastnn.convert(m[1]),
    "GELU's form": lambda m: setattr(m[7][1], "approximate", "none"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_watched_is_not_a_chain(change: str) -> None:
    model = nested()
    unchanged = holds(linear_chain(model))
    CHANGES[change](model)
    assert not unchanged()
    assert "has a hook, a replaced forward or a compiled one" in why_not(model)


def test_global_hooks_make_it_no_longer_a_chain() -> None:
    model = nested()
    unchanged = holds(linear_chain(model))
    handle = register_module_forward_pre_hook(hook)
    try:
        assert not unchanged()
        assert why_not(model) == "a hook for all modules is registered"
    finally:
        handle.remove()
    assert unchanged()


@pytest.mark.parametrize("change", REPLACEMENTS)
def test_a_changed_model_is_another_chain(change: str) -> None:
    model = nested()
    unchanged = holds(linear_chain(model))
    REPLACEMENTS[change](model)
    assert not unchanged()


def test_what_a_layer_holds_is_watched() -> None:
    layer = fastnn.nn.Linear(3, 3)
    unchanged = holds(linear_chain(layer))
    layer.activation = "relu"
    assert not unchanged()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_and_compiled_modules() -> None:
    scripted = torch.jit.script(T.Linear(3, 3))
    assert why_not(scripted)
    assert why_not(T.Sequential(scripted))
    compiled = T.Linear(3, 3)
    compiled.compile(backend="eager")
    assert "compiled" in why_not(compiled)
    assert why_not(torch.compile(T.Linear(3, 3), backend="eager"))
