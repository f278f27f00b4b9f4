"""What a captured function reaches through its arguments, in containers, and in the models that it calls."""

from __future__ import annotations

import random
import re
import types
import warnings
from collections import UserDict
from collections.abc import Callable
from random import random as drawn
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastnn
from twins import same


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.act: Callable[[Tensor], Tensor] = torch.tanh
        self.scale = 1.0
        self.options = {"shift": 0.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) * self.scale + self.options["shift"] + _shift


_shift = 0.0


class Holder:
    """Anything that a function may receive or reach."""

    def __init__(self) -> None:
        self.k, self.net = 1.0, Net()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.deep = types.SimpleNamespace(er=types.SimpleNamespace(k=1.0))
        self.nets: list[nn.Module] = [Net(), Net()]
        self.table: dict[str, Any] = {"k": 1.0, "net": Net(), "inner": {"k": 1.0}, "tensor": torch.ones(3)}
        self.numbers = [1.0, 2.0]
        self.pairs = [(torch.ones(3), 1.0)]
        self.scaled = _scaled_by(1.0)

    def use(self, x: Tensor) -> Tensor:
        return _use(self, x)


def _scaled_by(factor: float) -> Callable[[Tensor], Tensor]:
    def scaled(x: Tensor) -> Tensor:
        return x * factor

    return scaled


def _use(a: Holder, x: Tensor) -> Tensor:
    a.optimizer.zero_grad()
    loss = a.net(x).square().mean()
    loss.backward()
    a.optimizer.step()
    x = a.scaled(x) * a.k * a.deep.er.k * a.table["k"] * a.table["inner"]["k"] * a.numbers[0]
    with torch.no_grad():
        for net in (*a.nets, a.table["net"]):
            x = net(x)
    return x + a.table["tensor"] * a.pairs[0][0] * a.pairs[0][1]


def _by_closure(a: Holder) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    return lambda x: _use(a, x), ()


def _by_self(a: Holder) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    return a.use, ()


def _by_argument(a: Holder) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    return _use, (a,)


def _by_nested_argument(a: Holder) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    return lambda parts, x: _use(parts["all"][0], x), ({"all": [a]},)


def _in_a_list(a: Holder) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    holders = [a]
    return lambda x: _use(holders[0], x), ()


def _new_optimizer(a: Holder) -> None:
    a.optimizer = torch.optim.SGD(a.net.parameters(), lr=0.5)


def _trained_net(a: Holder) -> None:
    a.net = Net()
    _new_optimizer(a)


CHANGES: dict[str, Callable[[Holder], Any]] = {
    "number": lambda a: setattr(a, "k", 3.0),
    "model": _trained_net,
    "optimizer": _new_optimizer,
    "number of a model": lambda a: setattr(a.net, "scale", 3.0),
    "function of a model": lambda a: setattr(a.net, "act", torch.relu),
    "dict of a model": lambda a: a.net.options.update(shift=1.0),
    "function": lambda a: setattr(a, "scaled", _scaled_by(3.0)),
    "deep number": lambda a: setattr(a.deep.er, "k", 3.0),
    "number of a model in a list": lambda a: setattr(a.nets[1], "scale", 3.0),
    "model in a list": lambda a: a.nets.__setitem__(0, Net()),
    "one more model": lambda a: a.nets.append(Net()),
    "number in a dict": lambda a: a.table.update(k=3.0),
    "number in a dict in a dict": lambda a: a.table["inner"].update(k=3.0),
    "model in a dict": lambda a: a.table.update(net=Net()),
    "number of a model in a dict": lambda a: setattr(a.table["net"], "scale", 3.0),
    "tensor in a dict": lambda a: a.table.update(tensor=torch.full((3,), 2.0)),
    "tuple in a list": lambda a: a.pairs.__setitem__(0, (torch.full((3,), 2.0), 3.0)),
    "number in a list": lambda a: a.numbers.__setitem__(0, 3.0),
}


@pytest.mark.each_value
@pytest.mark.parametrize("reach", [_by_closure, _by_self, _by_argument, _by_nested_argument, _in_a_list])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_is_noticed(reach: Callable[..., Any], change: Callable[[Holder], Any]) -> None:
    torch.manual_seed(1)
    ours, theirs = Holder(), Holder()
    for a, b in (
        (ours.net, theirs.net),
        (ours.table["net"], theirs.table["net"]),
        *zip(ours.nets, theirs.nets, strict=True),
    ):
        b.load_state_dict(a.state_dict())
    (fn, given), (eager, its) = reach(ours), reach(theirs)
    captured = fastnn.capture(fn, native=True)
    x = torch.randn(2, 3)
    for _ in range(2):
        for _ in range(4):
            same(captured(*given, x), eager(*its, x))
        assert captured.programs[0].checked is True
        for holder in (ours, theirs):
            torch.manual_seed(2)
            change(holder)


def test_a_variable_of_a_function_that_is_given() -> None:
    factor = 1.0

    def scaled(x: Tensor) -> Tensor:
        return x * factor

    captured = fastnn.capture(lambda fn, x: fn(x) + 1, native=True)
    for factor in (1.0, 3.0):
        for _ in range(4):
            same(captured(scaled, torch.ones(3)), torch.full((3,), factor + 1))


def test_a_global_that_only_a_model_in_a_list_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Holder()
    captured = fastnn.capture(lambda x: _called(holder.nets, x), native=True)
    x = torch.ones(2, 3)
    for shift in (0.0, 2.0):
        monkeypatch.setitem(globals(), "_shift", shift)
        for _ in range(4):
            same(captured(x), _called(holder.nets, x))


def _called(nets: list[nn.Module], x: Tensor) -> Tensor:
    return sum((net(x) for net in nets), torch.zeros(())).detach()


def test_a_model_that_only_the_second_recording_calls() -> None:
    nets, which = [Net(), Net()], types.SimpleNamespace(net=0)
    hidden = UserDict(nets=nets)  # a library's object, which is not inspected

    def fn(x: Tensor) -> Tensor:
        return hidden["nets"][which.net](x).detach()  # type: ignore[no-any-return]

    captured = fastnn.capture(fn, native=True)
    x = torch.ones(2, 3)
    for which.net in (0, 1):
        for nets[which.net].scale in (1.0, 3.0):
            for _ in range(3):
                same(captured(x), fn(x))


def _twice(old: Any) -> Any:
    return lambda self, x: 2 * old(self, x)


def _nothing(old: Any) -> Any:
    return lambda self, *args, **kwargs: None


PATCHES = {
    "Linear.forward": (nn.Linear, "forward", _twice),
    "ReLU.forward": (nn.ReLU, "forward", _twice),
    "Sequential.forward": (nn.Sequential, "forward", _twice),
    "Module.__call__": (nn.Module, "__call__", _twice),
    "Module._call_impl": (nn.Module, "_call_impl", _twice),
    "Optimizer.zero_grad": (torch.optim.Optimizer, "zero_grad", _nothing),
    "SGD.zero_grad": (torch.optim.SGD, "zero_grad", _nothing),
    "SGD.step": (torch.optim.SGD, "step", _nothing),
}


@pytest.mark.parametrize("kind", [torch.optim.SGD, fastnn.optim.SGD])
@pytest.mark.parametrize(("owner", "name", "other"), PATCHES.values(), ids=PATCHES)
def test_a_replaced_method_of_torch_and_its_return(
    owner: type, name: str, other: Callable[[Any], Any], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> Callable[[Tensor], Tensor]:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        optimizer = kind(net.parameters(), lr=0.1)

        def update(x: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return update

    captured, eager = fastnn.capture(made(), keep_grad=True), made()
    x = torch.randn(5, 3)

    def compare() -> None:
        for _ in range(4):
            same(captured(x), eager(x))

    compare()
    assert captured.programs
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, other(getattr(owner, name)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some are recorded again, some are refused
            compare()
    compare()


class Sampler:
    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def sample(self) -> float:
        return float(self.generator.random())


GENERATORS: dict[str, Callable[[], Any]] = {
    "a numpy.random.Generator": lambda: np.random.default_rng(1),
    "a numpy.random.RandomState": lambda: np.random.RandomState(1),
    "a random.Random": lambda: random.Random(1),
    "a random.SystemRandom": random.SystemRandom,
}


def _of_closure(generator: Any) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    return lambda x: x * float(generator.random()), ()


def _of_argument(generator: Any) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    return lambda g, x: x * float(g.random()), (generator,)


def _of_attribute(generator: Any) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    holder = types.SimpleNamespace(sampler=Sampler(generator))
    return lambda x: x * holder.sampler.sample(), ()


def _of_dict(generator: Any) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    table = {"generator": generator}
    return lambda x: x * float(table["generator"].random()), ()


def _of_method(generator: Any) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    draw = generator.random
    return lambda x: x * float(draw()), ()


@pytest.mark.parametrize("reach", [_of_closure, _of_argument, _of_attribute, _of_dict, _of_method])
@pytest.mark.parametrize(("name", "make"), GENERATORS.items(), ids=GENERATORS)
def test_generators_that_torch_does_not_know(
    reach: Callable[..., Any], name: str, make: Callable[[], Any]
) -> None:
    fn, given = reach(make())
    captured = fastnn.capture(fn)
    with pytest.warns(fastnn.EagerStepWarning, match=f"draws from {name}"):
        values = {captured(*given, torch.ones(3))[0].item() for _ in range(10)}
    assert len(values) == 10


def test_a_function_of_pythons_generator() -> None:
    captured = fastnn.capture(lambda x: x * drawn())
    with pytest.warns(fastnn.EagerStepWarning, match=r"draws from a random\.Random"):
        values = {captured(torch.ones(3))[0].item() for _ in range(10)}
    assert len(values) == 10


@pytest.mark.parametrize("counts", [{"n": 0}, [0]], ids=["dict", "list"])
def test_an_entry_that_it_changes_itself_is_reported(counts: Any) -> None:
    key = "n" if isinstance(counts, dict) else 0

    def fn(x: Tensor) -> Tensor:
        counts[key] += 1
        return x * 2

    captured = fastnn.capture(fn)
    with pytest.warns(UserWarning, match=re.escape(f"[{key!r}] while it runs")):
        _ = [captured(torch.ones(3)) for _ in range(8)]
    assert counts[key] == 3
    assert len(captured.programs) == 1


def test_logs_that_the_function_grows_are_warned_of_once() -> None:
    log: list[int] = []
    seen: dict[int, str] = {}
    ring = [torch.zeros(3) for _ in range(4)]
    long = list(range(300))

    def fn(x: Tensor) -> Tensor:
        log.append(len(ring) + len(long))
        seen[len(log)] = "here"
        return x * 2

    captured = fastnn.capture(fn, native=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for i in range(12):
            captured(torch.ones(3))
            ring[i % 4] = torch.full((3,), float(i))
            long[i] = -i
            log.append(i)
    assert ["the length of log, the length of seen while" in str(each.message) for each in told] == [True]
    assert len(captured.programs) == 1


def test_equal_entries_and_options_of_an_optimizer_are_the_same() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    groups, numbers, table = optimizer.param_groups, [0.5], {"k": (2, 0.5)}

    def fn(x: Tensor) -> Tensor:
        assert groups
        (parameter * x * numbers[0] * table["k"][1]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return x * 2

    captured = fastnn.capture(fn, native=True)
    for i in range(8):
        captured(torch.ones(3))
        groups[0]["lr"] = 0.1 / (i + 1)
        numbers[0], table["k"] = 1.0 / (2 + i - i), (2, 1.0 / (2 + i - i))
    assert len(captured.programs) == 1


LOOKS: dict[str, Callable[[Tensor], float]] = {
    "shape": lambda t: t.shape[0],
    "size": lambda t: t.size(0),
    "length": len,
    "numel": torch.numel,
    "stride": lambda t: 1 + t.stride(0),
    "dtype": lambda t: 2.0 if t.dtype is torch.float64 else 1.0,
    "requires_grad": lambda t: 2.0 if t.requires_grad else 1.0,
}


@pytest.mark.parametrize("attribute", [False, True])
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_tensor_that_only_python_looks_at(look: Callable[[Tensor], float], attribute: bool) -> None:
    holder = types.SimpleNamespace(now=torch.zeros(4), all=[torch.zeros(4)])

    def fn(x: Tensor) -> Tensor:
        return x * look(holder.now if attribute else holder.all[0])

    captured = fastnn.capture(fn, native=True)
    other = torch.zeros(5, 2, dtype=torch.float64).T[0].requires_grad_()
    for t in (torch.zeros(4), other):
        if attribute:
            holder.now.requires_grad_(t.requires_grad)
            holder.now.data = t.detach()  # in place
        else:
            holder.all[0] = t
        for _ in range(4):
            same(captured(torch.ones(3)), torch.full((3,), float(look(t))))
        assert captured.programs[0].checked is True


def test_a_gradient_that_is_only_asked_whether_it_is_there() -> None:
    w = torch.ones(3, requires_grad=True)
    captured = fastnn.capture(lambda x: x if w.grad is None else x * 3, native=True)
    for w.grad in (torch.ones(3), None, torch.ones(3), torch.zeros(3)):
        for _ in range(4):
            same(captured(torch.ones(3)), torch.full((3,), 1.0 if w.grad is None else 3.0))
    assert len(captured.programs) == 2
