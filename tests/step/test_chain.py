"""linear_chain: which models are nothing but a chain of linear layers, and why others are not."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

import fastnn
from fastnn.step.chain import LinearChain, linear_chain

T = torch.nn


class Functional(T.Module):
    """Every way to write an activation, a nested Sequential and a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = T.Linear(6, 5), T.Linear(5, 4), T.Linear(4, 4)
        self.act = T.SiLU()
        self.head = T.Sequential(T.Linear(4, 3), T.GELU("tanh"), T.Sequential(T.Identity(), T.Linear(3, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = self.fc2(x).tanh()
        x = self.act(self.fc3(x))
        return torch.sigmoid(self.head(x))


class Wrapped(T.Module):
    def __init__(self, inner: T.Module, function: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if self.function is None else self.function(self.inner(x))


def names(chain: LinearChain | str) -> list[str | None]:
    assert isinstance(chain, LinearChain), chain
    return [activation for _, activation in chain]


@pytest.mark.parametrize("convert", [False, True])
def test_a_functional_model(convert: bool) -> None:
    model = Functional()
    linears = [module for module in model.modules() if isinstance(module, T.Linear)]
    x = torch.randn(3, 2, 3)
    want = model(x)
    if convert:
        fastnn.convert(model)
    chain = linear_chain(Wrapped(model))
    assert names(chain) == ["relu", "tanh", "silu", "gelu_tanh", "sigmoid"]
    assert all(layer is linear for (layer, _), linear in zip(chain, linears, strict=True))
    assert chain.flatten
    assert chain.holds()
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
        (Wrapped(T.Linear(3, 2), F.gelu), ["gelu"]),
        (Wrapped(T.Linear(3, 2), F.tanh), ["tanh"]),
        (Wrapped(T.Linear(3, 2), torch.relu_), ["relu"]),
    ],
)
def test_chains(model: T.Module, want: list[str | None]) -> None:
    assert names(linear_chain(model)) == want


@pytest.mark.parametrize(
    "model",
    [
        T.Sequential(T.Linear(3, 2), T.ReLU(), T.LogSoftmax(1), T.Identity()),
        T.Sequential(T.Linear(3, 2), T.ReLU(), T.Sequential(T.LogSoftmax(-1))),
        Wrapped(T.Sequential(T.Linear(3, 2), T.ReLU(), T.LogSoftmax(dim=1))),
    ],
)
def test_the_log_softmax_is_told(model: T.Module) -> None:
    chain = linear_chain(model)
    assert names(chain) == ["relu"]
    assert chain.log_softmax
    assert chain.holds()
    next(m for m in model.modules() if isinstance(m, T.LogSoftmax)).dim = 0
    assert not chain.holds()
    assert not linear_chain(T.Sequential(T.Linear(3, 2))).log_softmax


def log_softmax_of_float64(x: Tensor) -> Tensor:
    return F.log_softmax(x, 1, dtype=torch.float64)


def log_softmax_of_columns(x: Tensor) -> Tensor:
    return F.log_softmax(x, 0)


def log_softmax_of_whatever(x: Tensor) -> Tensor:
    return x.log_softmax(2)


def squeezed_log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, 1).squeeze(-1)


def log_softmax_of_squeezed(x: Tensor) -> Tensor:
    return torch.log_softmax(x.squeeze(-1), -1)


def test_the_flattening_is_told() -> None:
    assert linear_chain(T.Sequential(T.Flatten(), T.Linear(3, 2))).flatten
    assert not linear_chain(T.Sequential(T.Linear(3, 2))).flatten


def tied() -> T.Module:
    model = T.Sequential(T.Linear(3, 3), T.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


class Subclass(T.Linear):
    pass


class Residual(T.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = T.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x)


class TwoInputs(Residual):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.fc(x + y)


class Branching(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


class Unused(Residual):
    def forward(self, x: Tensor) -> Tensor:
        self.fc(x)
        return F.relu(x)


class Options(T.Module):
    """A layer that takes more than a tensor."""

    def forward(self, x: Tensor, dim: int) -> Tensor:
        return x * dim


class Named(Residual):
    """The layer has the name of a method of tensors."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method
        setattr(self, method, Options())

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.method)(self.fc(x), -1)


class Scaled(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.tanh(self.fc(x))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (T.ReLU(), "ReLU comes before any linear layer"),
        (T.Sequential(), "it has no linear layer"),
        (T.Sequential(T.Linear(3, 3), T.Dropout()), r"1 \(Dropout\) is no layer of a chain"),
        (T.Sequential(T.Linear(3, 3), T.ReLU(), T.ReLU()), "2 .ReLU. is a second activation in a row"),
        (T.Sequential(T.Linear(3, 4), T.Linear(3, 3)), "does not take as many features"),
        (T.Sequential(T.Linear(3, 3), T.Flatten(), T.Linear(3, 3)), r"1 \(Flatten\) is no flattening"),
        (T.Sequential(T.Flatten(0), T.Linear(3, 3)), r"0 \(Flatten\) is no flattening"),
        (tied(), "shares a parameter"),
        (T.Sequential(*[T.Linear(3, 3)] * 2), "shares a parameter"),
        (Subclass(3, 3), "Subclass is no layer"),
        (T.Sequential(T.LazyLinear(3)), "LazyLinear"),
        (Residual(), "does not pass one tensor from layer to layer"),
        (Unused(), "does not pass one tensor from layer to layer"),
        (Scaled(), "mul in Scaled takes the tensor behind another argument"),
        (Named("log_softmax"), "log_softmax in Named is given more than a tensor"),
        (Named("squeeze"), "squeeze in Named is given more than a tensor"),
        (TwoInputs(), r"TwoInputs does not begin with torch.cat\(\[...\], 1\) of all its 2 inputs"),
        (Branching(), "Branching cannot be traced: it branches on a tensor"),
        (Wrapped(T.Linear(3, 3), F.softplus), "softplus in Wrapped is no layer"),
        (T.Sequential(T.LogSoftmax(1), T.Linear(3, 3)), r"0 \(LogSoftmax\) comes before any linear layer"),
        (T.Sequential(T.Linear(3, 3), T.LogSoftmax()), "LogSoftmax. is not along the last of two"),
        (T.Sequential(T.Linear(3, 3), T.LogSoftmax(0)), "LogSoftmax. is not along the last of two"),
        (T.Sequential(T.Linear(3, 3), T.LogSoftmax(1), T.Linear(3, 3)), "Linear. comes after log_softmax"),
        (T.Sequential(T.Linear(3, 3), T.LogSoftmax(1), T.ReLU()), "ReLU. comes after log_softmax"),
        (T.Sequential(T.Linear(3, 3), *[T.LogSoftmax(1)] * 2), "LogSoftmax. comes after log_softmax"),
        (T.Sequential(T.Linear(3, 3), T.Softmax(1)), r"1 \(Softmax\) is no layer of a chain"),
        (Wrapped(T.Linear(3, 3), log_softmax_of_float64), "log_softmax in Wrapped has a dtype"),
        (Wrapped(T.Linear(3, 3), log_softmax_of_columns), "is not along the last of two dimensions"),
        (Wrapped(T.Linear(3, 3), log_softmax_of_whatever), "is not along the last of two dimensions"),
        (Wrapped(T.Linear(3, 1), squeezed_log_softmax), "squeeze in Wrapped comes after log_softmax"),
        (Wrapped(T.Linear(3, 1), log_softmax_of_squeezed), "log_softmax in Wrapped comes after a squeeze"),
        (Wrapped(Branching()), r"inner \(Branching\) cannot be traced"),
    ],
)
def test_reasons(model: T.Module, reason: str) -> None:
    found = linear_chain(model)
    assert isinstance(found, str), found
    assert re.search(reason, found), found


def hook(*_: Any) -> None:
    """Change nothing."""


CHANGES: dict[str, Callable[[Functional], object]] = {
    "forward hook": lambda m: m.fc2.register_forward_hook(hook),
    "pre-hook": lambda m: m.head[1].register_forward_pre_hook(hook),
    "backward hook": lambda m: m.head.register_full_backward_hook(hook),
    "backward pre-hook": lambda m: m.register_full_backward_pre_hook(hook),
    "forward": lambda m: setattr(m.act, "forward", F.silu),
}
REPLACEMENTS: dict[str, Callable[[Functional], object]] = {
    "layer": lambda m: setattr(m, "fc1", T.Linear(6, 5)),
    "layer of a Sequential": lambda m: m.head.__setitem__(0, T.Linear(4, 3)),
    "longer Sequential": lambda m: m.head.append(T.ReLU()),
    "class": lambda m: fastnn.convert(m.fc1),
    "GELU's form": lambda m: setattr(m.head[1], "approximate", "none"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_watched_is_no_chain(change: str) -> None:
    model = Functional()
    chain = linear_chain(model)
    assert chain.holds()
    CHANGES[change](model)
    assert not chain.holds()
    assert "has a hook, a replaced forward or a compiled one" in linear_chain(model)


def test_global_hooks() -> None:
    model = Functional()
    chain = linear_chain(model)
    handle = register_module_forward_pre_hook(hook)
    try:
        assert not chain.holds()
        assert linear_chain(model) == "a hook for all modules is registered"
    finally:
        handle.remove()
    assert chain.holds()


@pytest.mark.parametrize("change", REPLACEMENTS)
def test_a_changed_model_is_another_chain(change: str) -> None:
    model = Functional()
    chain = linear_chain(model)
    assert chain.holds()
    REPLACEMENTS[change](model)
    assert not chain.holds()


LIMIT = 1.0


class Reading(T.Module):
    """A forward that is a chain as long as nothing that it reads on the way is another."""

    gain = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.fc = T.Linear(3, 3)
        self.more = T.ModuleList([T.Linear(3, 3)])
        self.scale, self.shift, self.kind, self.nothing = 2.0, 0.0, 1, None

    def activate(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activate(self.fc(x))
        for layer in self.more:
            x = layer(x)
        if self.nothing is not None:
            x = self.nothing(x)
        read = (self.scale, self.shift, self.kind, self.gain, LIMIT, getattr(self, "extra", 1.0))
        return x if self.training or max(read) < 3 else torch.tanh(x)


READ: dict[str, Callable[[Reading], object]] = {
    "attribute": lambda m: setattr(m, "scale", 5.0),
    "its sign": lambda m: setattr(m, "shift", -0.0),
    "its type": lambda m: setattr(m, "kind", True),
    "class attribute": lambda m: setattr(Reading, "gain", 4.0),
    "absent attribute": lambda m: setattr(m, "extra", 4.0),
    "method": lambda m: setattr(m, "activate", torch.sin),
    "None": lambda m: setattr(m, "nothing", torch.sin),
    "global": lambda m: globals().update(LIMIT=4.0),
    "longer list": lambda m: m.more.append(T.Linear(3, 3)),
    "training flag": lambda m: m.eval(),
}


@pytest.mark.parametrize("change", READ)
def test_what_the_forward_read_is_watched(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "LIMIT", LIMIT)
    monkeypatch.setattr(Reading, "gain", Reading.gain)
    model = Reading()
    chain = linear_chain(model)
    assert names(chain) == ["relu", None]
    assert chain.holds()
    READ[change](model)
    assert not chain.holds()


def test_what_a_layer_holds_is_watched() -> None:
    model = Wrapped(T.Linear(3, 3), torch.relu)
    chain = linear_chain(model)
    assert chain.holds()
    model.function = torch.tanh
    assert not chain.holds()
    layer = fastnn.nn.Linear(3, 3)
    chain = linear_chain(layer)
    layer.activation = "relu"
    assert not chain.holds()


def test_a_traced_model_is_freed_at_once() -> None:
    model = Reading()
    gone = weakref.ref(model)
    gc.disable()
    try:
        assert linear_chain(model).holds()
        del model
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_and_compiled_modules() -> None:
    scripted = torch.jit.script(T.Linear(3, 3))
    assert isinstance(linear_chain(scripted), str)
    assert isinstance(linear_chain(T.Sequential(scripted)), str)
    compiled = T.Linear(3, 3)
    compiled.compile(backend="eager")
    assert "compiled" in linear_chain(compiled)
    assert isinstance(linear_chain(torch.compile(T.Linear(3, 3), backend="eager")), str)
