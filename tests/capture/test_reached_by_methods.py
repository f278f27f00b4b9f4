"""What only methods of other objects read, and what functions are made of."""

from __future__ import annotations

import sys
import types
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial, partialmethod, singledispatchmethod, wraps
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastnn
from twins import same


class Scaler:
    """A helper, such as one that normalises observations."""

    of_class = types.SimpleNamespace(k=1.0)

    def _times(self, factor: float, x: Tensor) -> Tensor:
        return x * factor * self._k

    once = partialmethod(_times, 1.0)

    @singledispatchmethod
    def by_type(self, x: Any) -> Any:
        raise TypeError(type(x))

    @by_type.register
    def _(self, x: Tensor) -> Tensor:
        return x * self._k

    def __init__(self) -> None:
        self._k, self._mean, self._table = 1.0, torch.zeros(3), {"k": 1.0}
        self._by = np.ones(2)

    def scale(self, x: Tensor) -> Tensor:
        return (x - self._mean) * self._k

    def by_table(self, x: Tensor) -> Tensor:
        return x * self._table["k"]

    def by_array(self, x: Tensor) -> Tensor:
        return x * float(self._by[1])

    @property
    def k(self) -> float:
        return self._k

    @cached_property
    def cached(self) -> float:
        return self._k

    def __getitem__(self, key: str) -> Any:
        return self._table[key]

    def __getattr__(self, name: str) -> Any:
        if name == "from_table":
            return self._table["k"]
        raise AttributeError(name)

    def __enter__(self) -> float:
        return self._k

    def __exit__(self, *error: object) -> None:
        pass

    def __len__(self) -> int:
        return int(self._k)

    def __call__(self, x: Tensor) -> Tensor:
        return x * self._k


class Derived(Scaler):
    def scale(self, x: Tensor) -> Tensor:
        return super().scale(x) + 1


class Described:
    def __get__(self, instance: Any, owner: type | None = None) -> float:
        return float(instance._described)


@dataclass(slots=True)
class Slots:
    k: float = 1.0


class Settings:
    k = 1.0


class Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scaler: Scaler) -> Tensor:
        ctx.scaler = scaler
        return x * scaler._k

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.scaler._k * Settings.k, None


class Scaled:
    def __init__(self, x: Tensor) -> None:
        self.x = x * Settings.k

    def sum(self) -> Tensor:
        return self.x


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k = Settings.k

    def forward(self, x: Tensor) -> Tensor:
        return x * self.k


def _derivative(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(fn(x).sum(), x)[0].clone()


class Agent:
    described = Described()

    def __init__(self) -> None:
        self.scaler, self.derived, self.scalers = Scaler(), Derived(), [Scaler(), Scaler()]
        self.inner = types.SimpleNamespace(scaler=self.scaler)
        self.bound, self.partly = self.scaler.scale, partial(Scaler.scale, self.scaler)
        self.closed = self._closed()
        self.settings = Settings
        self.proxy = weakref.proxy(self.scaler)
        self.layer = nn.Linear(3, 3)
        nn.init.eye_(self.layer.weight)
        self.layer.register_forward_hook(lambda module, args, out: out * self.scaler.k)
        self.layer.register_forward_pre_hook(lambda module, args: (args[0] * self.scaler.k,))
        self.backward = nn.Linear(3, 3)
        self.backward.register_full_backward_hook(lambda module, given, got: (given[0] * self.scaler.k,))
        self.weight = torch.ones(3, requires_grad=True)
        self.weight.register_hook(lambda grad: grad * self.scaler.k)
        self.net = Net()
        self._described = 1.0
        self.slots, self.window, self.flags = Slots(), deque([1.0, 1.0], maxlen=2), {1}
        self.k0, self.k1, self.which = 1.0, 1.0, "k0"

    def _closed(self) -> Callable[[Tensor], Tensor]:
        return lambda x: x * self.scaler.k


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaler = Scaler()
        self.k = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scaler.scale(x)

    def other(self, x: Tensor) -> Tensor:
        return x * self.k


def _set_k(scaler: Scaler) -> None:
    scaler._k = 3.0


def _with(scaler: Scaler, x: Tensor) -> Tensor:
    with scaler as k:
        return x * k


READS: dict[str, tuple[Callable[[Agent, Tensor], Tensor], Callable[[Agent], Any]]] = {
    "method": (lambda a, x: a.scaler.scale(x), lambda a: _set_k(a.scaler)),
    "tensor": (lambda a, x: a.scaler.scale(x), lambda a: setattr(a.scaler, "_mean", torch.ones(3))),
    "dict": (lambda a, x: a.scaler.by_table(x), lambda a: a.scaler._table.update(k=3.0)),
    "array": (lambda a, x: a.scaler.by_array(x), lambda a: a.scaler._by.fill(3.0)),
    "property": (lambda a, x: x * a.scaler.k, lambda a: _set_k(a.scaler)),
    "of a base": (lambda a, x: a.derived.scale(x), lambda a: _set_k(a.derived)),
    "in a list": (lambda a, x: a.scalers[1].scale(x), lambda a: _set_k(a.scalers[1])),
    "deeper": (lambda a, x: a.inner.scaler.scale(x), lambda a: _set_k(a.scaler)),
    "bound": (lambda a, x: a.bound(x), lambda a: _set_k(a.scaler)),
    "partial": (lambda a, x: a.partly(x), lambda a: _set_k(a.scaler)),
    "closure": (lambda a, x: a.closed(x), lambda a: _set_k(a.scaler)),
    "of a class": (lambda a, x: x * a.scaler.of_class.k, lambda a: setattr(Scaler.of_class, "k", 3.0)),
    "of a model": (lambda a, x: a.net(x), lambda a: _set_k(a.net.scaler)),
    "another method of a model": (lambda a, x: a.net.other(x), lambda a: setattr(a.net, "k", 3.0)),
    "index": (lambda a, x: x * a.scaler["k"], lambda a: a.scaler._table.update(k=3.0)),
    "attribute": (lambda a, x: x * a.scaler.from_table, lambda a: a.scaler._table.update(k=3.0)),
    "with": (lambda a, x: _with(a.scaler, x), lambda a: _set_k(a.scaler)),
    "length": (lambda a, x: x * len(a.scaler), lambda a: _set_k(a.scaler)),
    "call": (lambda a, x: a.scaler(x), lambda a: _set_k(a.scaler)),
    "slots": (lambda a, x: x * a.slots.k, lambda a: setattr(a.slots, "k", 3.0)),
    "deque": (lambda a, x: x * sum(a.window), lambda a: a.window.append(3.0)),
    "set": (lambda a, x: x * 2 if 3 in a.flags else x, lambda a: a.flags.add(3)),
    "name put together": (
        lambda a, x: x * sum(getattr(a, f"k{i}") for i in range(2)),
        lambda a: setattr(a, "k1", 3.0),
    ),
    "name in an attribute": (lambda a, x: x * getattr(a, a.which), lambda a: setattr(a, "k0", 3.0)),
    "name with a dot": (lambda a, x: x * attrgetter("inner.scaler.k")(a), lambda a: _set_k(a.scaler)),
    "method of a partial": (lambda a, x: a.scaler.once(x), lambda a: _set_k(a.scaler)),
    "method by type": (lambda a, x: a.scaler.by_type(x), lambda a: _set_k(a.scaler)),
    "of a class in an attribute": (lambda a, x: x * a.settings.k, lambda a: setattr(Settings, "k", 3.0)),
    "object made in it": (lambda a, x: Scaled(x).sum(), lambda a: setattr(Settings, "k", 3.0)),
    "model made in it": (lambda a, x: Layer()(x), lambda a: setattr(Settings, "k", 3.0)),
    "forward of a Function": (
        lambda a, x: Times.apply(x, a.scaler),  # type: ignore[no-untyped-call]
        lambda a: _set_k(a.scaler),
    ),
    "backward of a Function": (
        lambda a, x: _derivative(lambda x: Times.apply(x, a.scaler), x),  # type: ignore[no-untyped-call]
        lambda a: setattr(Settings, "k", 3.0),
    ),
    "hooks of a model": (lambda a, x: a.layer(x).detach(), lambda a: _set_k(a.scaler)),
    "hook of a model's backward": (lambda a, x: _derivative(a.backward, x), lambda a: _set_k(a.scaler)),
    "hook of a tensor": (
        lambda a, x: torch.autograd.grad((a.weight * x).sum(), a.weight)[0].clone(),
        lambda a: _set_k(a.scaler),
    ),
    "proxy": (lambda a, x: a.proxy.scale(x), lambda a: _set_k(a.scaler)),
    "another class": (lambda a, x: a.scaler.scale(x), lambda a: setattr(a.scaler, "__class__", Derived)),
    "descriptor": (lambda a, x: x * a.described, lambda a: setattr(a, "_described", 3.0)),
}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("read", "change"), READS.values(), ids=READS)
def test_what_a_helper_reads_is_noticed(
    read: Callable[..., Tensor], change: Callable[..., Any], given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scaler.of_class, "k", 1.0)
    monkeypatch.setattr(Settings, "k", 1.0)
    agent = Agent()
    captured = fastnn.capture(read if given else lambda x: read(agent, x), native=True)
    arguments = (agent, torch.ones(3)) if given else (torch.ones(3),)
    for _ in range(2):
        for _ in range(4):
            same(captured(*arguments), read(agent, torch.ones(3)))
        assert captured.programs[0].checked is True
        change(agent)


METHODS: dict[str, Callable[[float], Any]] = {
    "method": lambda k: lambda self, x: x * k,
    "class method": lambda k: classmethod(lambda cls, x: x * k),
    "static method": lambda k: staticmethod(lambda x: x * k),
    "method of a partial": lambda k: partialmethod(lambda self, factor, x: x * factor, k),
    "method by type": lambda k: singledispatchmethod(lambda self, x: x * k),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_that_is_replaced_in_its_class(method: Callable[[float], Any]) -> None:
    class Model(nn.Module):
        scaled = method(1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.scaled(x)  # type: ignore[no-any-return]

    captured = fastnn.capture(Model().forward, native=True)
    for k in (1.0, 3.0):
        Model.scaled = method(k)
        for _ in range(4):
            same(captured(torch.ones(3)), torch.full((3,), k))
        assert captured.programs[0].checked is True


def test_a_cached_property_that_is_made_again() -> None:
    agent = Agent()
    captured = fastnn.capture(lambda x: x * agent.scaler.cached, native=True)
    for k in (1.0, 3.0):
        agent.scaler._k, _ = k, agent.scaler.__dict__.pop("cached", None)
        assert agent.scaler.cached == k
        for _ in range(4):
            same(captured(torch.ones(3)), torch.full((3,), k))


def _times(x: Tensor, k: float = 1.0, *, by: float = 1.0) -> Tensor:
    return x * k * by


def _thrice(x: Tensor, k: float = 1.0, *, by: float = 1.0) -> Tensor:
    return x * k * by * 3


_times.of_its_own = 1.0  # type: ignore[attr-defined]
_partly = partial(_times, k=1.0)


@wraps(_times)
def _around(x: Tensor) -> Tensor:
    return _times(x)


_inner = fastnn.capture(lambda x: x * _inner.of_its_own)  # type: ignore[attr-defined, misc]
_inner.of_its_own = 1.0  # type: ignore[attr-defined]


MADE_OF: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[pytest.MonkeyPatch], Any]]] = {
    # Like IPython's autoreload.
    "code": (_around, lambda patch: patch.setattr(_times, "__code__", _thrice.__code__)),
    "its own code": (_times, lambda patch: patch.setattr(_times, "__code__", _thrice.__code__)),
    "defaults": (_around, lambda patch: patch.setattr(_times, "__defaults__", (3.0,))),
    "defaults of keywords": (_around, lambda patch: patch.setattr(_times, "__kwdefaults__", {"by": 3.0})),
    "a default of a keyword": (_around, lambda patch: patch.setitem(_times.__kwdefaults__, "by", 3.0)),
    "attribute": (
        lambda x: x * _times.of_its_own,  # type: ignore[attr-defined]
        lambda patch: patch.setattr(_times, "of_its_own", 3.0),
    ),
    "attribute of a captured one": (_inner, lambda patch: patch.setattr(_inner, "of_its_own", 3.0)),
    "keyword of a partial": (lambda x: _partly(x), lambda patch: patch.setitem(_partly.keywords, "k", 3.0)),
}


@pytest.mark.parametrize(("fn", "change"), MADE_OF.values(), ids=MADE_OF)
def test_functions_that_are_changed_in_place(
    fn: Any, change: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = fn if isinstance(fn, type(_inner)) else fastnn.capture(fn, native=True)
    x = torch.ones(3)
    for factor in (1.0, 3.0):
        for _ in range(4):
            same(captured(x), x * factor)
        assert captured.programs[0].checked is True
        change(monkeypatch)


def test_a_module_that_is_imported_in_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "settings_of_this_test", settings := types.ModuleType("settings"))
    settings.k = settings.z = 1.0  # type: ignore[attr-defined]

    def fn(x: Tensor) -> Tensor:
        import settings_of_this_test as imported
        from settings_of_this_test import z

        return x * imported.k * z  # type: ignore[no-any-return]

    captured = fastnn.capture(fn, native=True)
    for name in ("k", "z"):
        for _ in range(4):
            same(captured(torch.ones(3)), fn(torch.ones(3)))
        assert captured.programs[0].checked is True
        setattr(settings, name, 3.0)
    same(captured(torch.ones(3)), torch.full((3,), 9.0))


RATES: dict[str, Callable[..., float]] = {
    "option": lambda optimizer, schedule: optimizer.param_groups[0]["lr"],
    "schedule": lambda optimizer, schedule: schedule.get_last_lr()[0],
}


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
def test_a_learning_rate_that_the_function_reads(rate: Callable[..., float]) -> None:
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4, gamma=0.5)

    def update(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        (weight * x).sum().backward()
        optimizer.step()
        with torch.no_grad():
            weight.mul_(1 - rate(optimizer, schedule))
        return weight.detach().clone()

    captured = fastnn.capture(update, native=True)
    expected = torch.ones(3)
    for _ in range(12):
        lr = optimizer.param_groups[0]["lr"]
        expected = (expected - lr) * (1 - lr)
        same(captured(torch.ones(3)), expected)
        schedule.step()
    assert captured.programs[0].checked is True


def test_an_option_that_only_the_step_reads_may_change() -> None:
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.5)

    def update(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        (weight * x).sum().backward()
        optimizer.step()
        return weight.detach().clone()

    captured, expected = fastnn.capture(update, native=True), torch.ones(3)
    for i in range(12):
        optimizer.param_groups[0]["lr"] = lr = 1 / (1 + i)
        expected = expected - lr
        same(captured(torch.ones(3)), expected)
    assert len(captured.programs) == 1


def test_the_type_that_autocast_chooses() -> None:
    before = torch.get_autocast_dtype("cpu")

    def product(x: Tensor) -> Tensor:
        with torch.autocast("cpu"):
            return x @ x

    captured = fastnn.capture(product, native=True)
    try:
        for dtype in (torch.bfloat16, torch.float16):
            torch.set_autocast_dtype("cpu", dtype)
            for _ in range(4):
                assert captured(torch.ones(3, 3)).dtype is dtype
    finally:
        torch.set_autocast_dtype("cpu", before)


class Counted:
    made, gamma = 0, 0.5

    def __init__(self) -> None:
        Counted.made += 1
        self.steps = 0
        self.first = self.steps

    def update(self, x: Tensor) -> Tensor:
        return x * Counted.gamma


class CountedToo(Counted):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Counted()

    def update(self, x: Tensor) -> Tensor:
        return super().update(x) if isinstance(self.inner, Counted) else x


def test_counters_that_a_class_gives_its_objects_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function reads the class, or its methods use `super()`: it creates no instance."""
    monkeypatch.setattr(Counted, "made", 0)
    counted = CountedToo()
    captured = fastnn.capture(counted.update, native=True)
    for _ in range(20):
        Counted.made += 1
        counted.steps += 1
        counted.inner.steps += 1
        same(captured(torch.ones(3)), torch.full((3,), 0.5))
    assert len(captured.programs) == 1


def test_counters_that_it_does_not_read_may_change() -> None:
    class Buffer:
        def __init__(self) -> None:
            self.gamma, self.filled = 0.5, 0

        def __len__(self) -> int:
            return self.filled

    buffer = Buffer()
    holder = types.SimpleNamespace(buffer=buffer)
    captured = fastnn.capture(lambda x: x * holder.buffer.gamma, native=True)
    for _ in range(20):
        buffer.filled += 1
        same(captured(torch.ones(3)), torch.full((3,), 0.5))
    assert len(captured.programs) == 1
