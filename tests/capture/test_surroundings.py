"""What a captured function finds by name is watched: another model, tensor or number is another call."""

from __future__ import annotations

import argparse
import copy
import gc
import pickle
import random
import types
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from fastnn.capture.names import Code
from twins import same

_table = torch.zeros(3)
_factor = 1.0


def _reads_globals(x: Tensor) -> Tensor:
    return (x + _table) * _factor


def calls(captured: Any, fn: Callable[..., Any], n: int, *args: Any) -> None:
    for _ in range(n):
        same(captured(*args), fn(*args))


def test_a_rebound_global_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = fastnn.capture(_reads_globals, native=True)
    x = torch.randn(3)
    calls(captured, _reads_globals, 5, x)
    monkeypatch.setitem(globals(), "_table", torch.ones(3))
    calls(captured, _reads_globals, 5, x)
    monkeypatch.setitem(globals(), "_factor", 2.5)
    calls(captured, _reads_globals, 5, x)
    monkeypatch.setitem(globals(), "_factor", 5.0 / 2)  # an equal number is the same
    calls(captured, _reads_globals, 1, x)
    assert len(captured.programs) == 3


def test_an_assertion_does_not_lead_to_what_pytest_has() -> None:
    """pytest rewrites it to its own calls, from which its session with all tests is reachable."""

    def fn(x: Tensor) -> None:
        assert x.sum() is not None

    code = Code(Mock())
    code.found(fn)
    code.follow_methods()
    assert "_pytest.assertion.rewrite" in code.libraries
    assert not code.objects


def test_a_compiled_model_does_not_lead_to_all_of_torch() -> None:
    model = torch.compile(nn.Linear(2, 2), backend="eager")
    model(torch.ones(1, 2))
    code = Code(Mock())
    code.found(lambda x: F.layer_norm(model(x), (2,)))
    code.follow_methods()
    assert len(code.objects) < 100


def test_variables_of_enclosing_functions() -> None:
    table = torch.zeros(3)

    def inner(x: Tensor) -> Tensor:
        return x * table

    def outer(x: Tensor) -> Tensor:
        return inner(x) + 1

    captured = fastnn.capture(outer, native=True)
    for _ in range(3):
        calls(captured, outer, 5, torch.randn(3))
        table = torch.randn(3)


class Agent:
    def __init__(self) -> None:
        self.net = nn.Linear(4, 2)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.norm = nn.LayerNorm(4)
        self.options = Options()
        self.steps = 0

    def update(self, x: Tensor) -> Tensor:
        loss = (self.net(self.norm(x)) * self.options.scale).pow(2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Options:
    def __init__(self) -> None:
        self.scale = 1.0


def _new_model(agent: Agent) -> None:
    net = nn.Linear(4, 2)
    net.load_state_dict(agent.net.state_dict())
    agent.net, agent.optimizer = net, torch.optim.SGD(net.parameters(), lr=0.1)


def _new_optimizer(agent: Agent) -> None:
    agent.optimizer = torch.optim.SGD(agent.net.parameters(), lr=0.5)


def _new_number(agent: Agent) -> None:
    agent.options.scale = 3.0


def _new_forward(agent: Agent) -> None:
    net = agent.net
    net.forward = lambda x: torch.tanh(x @ net.weight.t())  # type: ignore[method-assign]


def _new_eps(agent: Agent) -> None:
    agent.norm.eps = 1.0


@pytest.mark.parametrize("change", [_new_model, _new_optimizer, _new_number, _new_forward, _new_eps])
def test_a_rebound_attribute_is_noticed(change: Callable[[Agent], None]) -> None:
    torch.manual_seed(1)
    ours, theirs = Agent(), Agent()
    theirs.net.load_state_dict(ours.net.state_dict())
    captured = fastnn.capture(ours.update, native=True)
    for _ in range(2):
        for _ in range(5):
            x = torch.randn(3, 4)
            same(captured(x), theirs.update(x))
            same([*ours.net.parameters()], [*theirs.net.parameters()])
        assert captured.programs[0].checked is True
        change(ours), change(theirs)
    assert captured.programs


def test_attributes_that_it_does_not_read_may_change() -> None:
    agent = Agent()
    captured = fastnn.capture(agent.update, native=True)
    for _ in range(6):
        captured(torch.ones(3, 4))
        agent.steps += 1
    assert len(captured.programs) == 1


class Busy(Agent):
    """Attributes that change between calls have names that the update uses for other things."""

    def __init__(self) -> None:
        super().__init__()
        self.loss: Any = None

    def step(self, x: Tensor) -> None:
        self.loss = self.learn(x)["loss"]
        self.steps += 1

    def learn(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.update(x)}

    def update(self, x: Tensor) -> Tensor:
        loss = self.net(x).pow(2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def test_names_that_it_reads_of_other_things() -> None:
    agent = Busy()
    agent.learn = captured = fastnn.capture(agent.learn, native=True)  # type: ignore[method-assign]
    for _ in range(12):
        agent.step(torch.ones(3, 4))
    assert len(captured.programs) == 1


def _by_attribute(x: Tensor, options: Any) -> Tensor:
    return x * options.scale


def _by_text(x: Tensor, options: Any) -> Tensor:
    name = "scale"
    return x * float(getattr(options, name))


@pytest.mark.parametrize("fn", [_by_attribute, _by_text])
@pytest.mark.parametrize("kind", [Options, types.SimpleNamespace, argparse.Namespace])
def test_a_changed_option_is_noticed(fn: Callable[[Tensor, Any], Tensor], kind: type) -> None:
    options = kind()

    def scaled(x: Tensor) -> Tensor:
        return fn(x, options)

    captured = fastnn.capture(scaled, native=True)
    for options.scale in (1.0, 3.0):
        calls(captured, scaled, 5, torch.ones(3))


class OfClass:
    scale = 1.0

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_what_an_object_has_of_its_class_and_then_itself() -> None:
    options = OfClass()
    captured = fastnn.capture(lambda x: options.scaled(x), native=True)
    for _ in range(5):
        same(captured(torch.ones(3)), torch.ones(3))
    options.scale = 3.0
    same(captured(torch.ones(3)), torch.full((3,), 3.0))
    options.scaled = lambda x: x * 5.0  # type: ignore[method-assign]
    same(captured(torch.ones(3)), torch.full((3,), 5.0))


class Nested:
    def __init__(self) -> None:
        self.scale = 1.0

    @fastnn.capture
    def inner(self, x: Tensor) -> Tensor:
        return x * self.scale

    def outer(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


def test_what_a_captured_function_within_reads() -> None:
    nested = Nested()
    captured = fastnn.capture(nested.outer, native=True)
    for scale in (1.0, 3.0):
        nested.scale = scale
        calls(captured, nested.outer, 5, torch.ones(3))
        same(captured(torch.ones(3)), torch.full((3,), 1 + scale))


def test_options_in_a_module() -> None:
    module = types.ModuleType("settings")
    module.options = options = Options()  # type: ignore[attr-defined]

    def scaled(x: Tensor) -> Tensor:
        return x * module.options.scale

    captured = fastnn.capture(scaled, native=True)
    for options.scale in (1.0, 3.0):
        calls(captured, scaled, 5, torch.ones(3))


class Counting(Agent):
    def update(self, x: Tensor) -> Tensor:
        self.steps += 1
        return super().update(x)


def test_what_it_changes_itself_is_reported_and_not_watched() -> None:
    agent = Counting()
    captured = fastnn.capture(agent.update)
    x = torch.ones(3, 4)
    with pytest.warns(UserWarning, match=r"changes self\.steps while it runs, which replays do not"):
        _ = [captured(x) for _ in range(3)]
    assert agent.steps == 3
    captured(x)  # nothing is reported again
    assert agent.steps == 3
    assert captured.programs[0].checked is True


def test_a_number_that_it_sets_to_what_it_was_is_not_reported() -> None:
    agent = Agent()

    def fn(x: Tensor) -> Tensor:
        agent.rows = 0.5 * x.shape[0]  # type: ignore[attr-defined]
        return x * agent.rows  # type: ignore[attr-defined]

    captured = fastnn.capture(fn, native=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calls(captured, fn, 5, torch.ones(3))


def _by_python(x: Tensor) -> Tensor:
    return x * 2 if random.random() < 0.5 else x


def _by_numpy(x: Tensor) -> Tensor:
    return x * float(np.random.rand())


@pytest.mark.parametrize(("fn", "name"), [(_by_python, "Python's random"), (_by_numpy, "numpy.random")])
def test_numbers_that_torch_does_not_draw(fn: Callable[[Tensor], Tensor], name: str) -> None:
    captured = fastnn.capture(fn)
    x = torch.ones(3)
    with pytest.warns(fastnn.EagerStepWarning, match=f"draws from {name}"):
        values = {captured(x)[0].item() for _ in range(60)}
    assert len(values) > 1


@pytest.mark.filterwarnings("ignore:.*the length of drawn while it runs")
def test_numbers_that_another_thread_draws_once() -> None:
    drawn = []

    def fn(x: Tensor) -> Tensor:
        if len(drawn) == 1:
            random.seed(5)  # as another thread might
        drawn.append(random.Random)
        return x * 2

    captured = fastnn.capture(fn, native=True)
    for _ in range(6):
        captured(torch.ones(3))
    assert len(drawn) == 4  # as written, recorded twice, compared
    assert captured.programs


class Cyclic(Agent):
    def __init__(self) -> None:
        super().__init__()
        self.me = self

    @fastnn.capture(native=True)
    def captured(self, x: Tensor) -> Tensor:
        return self.update(x)


def test_an_object_that_leads_back_to_itself_is_freed() -> None:
    agent = Cyclic()
    for _ in range(5):
        agent.captured(torch.ones(3, 4))
    assert agent.captured.programs
    gone = [weakref.ref(agent), weakref.ref(agent.net)]
    del agent
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_copies_of_an_object_begin_again() -> None:
    agent = Cyclic()
    for _ in range(5):
        agent.captured(torch.ones(3, 4))
    for other in (copy.copy(agent), copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))):
        assert other.captured.programs == ()
        other.net = nn.Linear(4, 2)
        other.optimizer = torch.optim.SGD(other.net.parameters(), lr=0.1)
        before = agent.net.bias.clone(), other.net.bias.clone()
        for _ in range(5):
            other.captured(torch.ones(3, 4))
        assert torch.equal(before[0], agent.net.bias)
        assert not torch.equal(before[1], other.net.bias)


class SeveralMethods:
    twice = fastnn.capture(lambda self, x: x * 2, native=True)  # with the same name
    thrice = fastnn.capture(lambda self, x: x * 3, native=True)
    added = fastnn.capture(partial(lambda k, self, x: x + k, 4), native=True)  # without a name


def test_methods_of_one_object_are_apart_whatever_their_names() -> None:
    several, x = SeveralMethods(), torch.ones(2)
    for _ in range(5):
        same([several.twice(x), several.thrice(x), several.added(x)], [x * 2, x * 3, x + 4])
    assert [len(m.programs) for m in (several.twice, several.thrice, several.added)] == [1, 1, 1]


class Reading:
    @fastnn.capture
    def value(self, x: Tensor) -> Any:
        return x.sum().item()


def test_a_methods_own_file_is_named() -> None:
    with pytest.warns(fastnn.EagerStepWarning, match=r"runs Reading\.value \(test_surroundings\.py:\d+\)"):
        Reading().value(torch.ones(2))


def test_an_equal_tuple_is_the_same() -> None:
    agent = Agent()
    agent.shape = (3, 2.0)

    def fn(x: Tensor) -> Tensor:
        return x.expand(agent.shape[0]) * agent.shape[1]

    captured = fastnn.capture(fn, native=True)
    for _ in range(6):
        same(captured(torch.ones(1)), torch.full((3,), 2.0))
        agent.shape = (*agent.shape[:1], 2.0)  # another tuple
    assert len(captured.programs) == 1
    agent.shape = (3, -2.0)
    for _ in range(4):
        same(captured(torch.ones(1)), torch.full((3,), -2.0))


def test_a_generator_that_it_names_and_does_not_use() -> None:
    def fn(x: Tensor, draws: bool = False) -> Tensor:
        return x * random.random() if draws else x * 2

    captured = fastnn.capture(fn, native=True)
    for _ in range(5):
        random.random()
        captured(torch.ones(3))
    assert captured.programs


class Odd(type):
    def __getattribute__(cls, name: str) -> Any:
        if name == "weight":
            raise LookupError("not here")
        return super().__getattribute__(name)


class Strange(metaclass=Odd):
    weight = 1.0

    def __init__(self) -> None:
        self.bias = torch.ones(3)


def test_a_class_that_objects_to_being_looked_at() -> None:
    strange = Strange()

    def fn(x: Tensor) -> Tensor:
        return x + strange.bias * strange.weight

    captured = fastnn.capture(fn, native=True)
    same([captured(torch.zeros(3)) for _ in range(4)], [torch.ones(3)] * 4)
    assert captured.programs


class WithClassMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)

    @classmethod
    def scale(cls) -> float:
        return 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.scale()


def test_class_methods_are_recorded() -> None:
    model = WithClassMethod()
    captured = fastnn.capture(lambda x: model(x).detach(), native=True)
    for _ in range(5):
        captured(torch.randn(2, 3))
    assert len(captured.programs) == 1
    step = fastnn.TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(4):
        step(torch.randn(2, 3), torch.randn(2, 3))
    assert len(step.programs) == 1


@pytest.mark.parametrize("collects", [True, False])
def test_a_recording_leaves_the_collector_as_it_is(collects: bool) -> None:
    before = gc.isenabled()
    captured = fastnn.capture(lambda x: x * 2, native=True)
    try:
        (gc.enable if collects else gc.disable)()
        calls(captured, lambda x: x * 2, 3, torch.ones(3))
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()


def test_what_cannot_be_called() -> None:
    with pytest.raises(TypeError, match="fn must be callable, got int"):
        fastnn.capture(3)  # type: ignore[call-overload]


def test_the_line_of_a_refusal_is_reported() -> None:
    def fn(x: Tensor) -> Any:
        return x * x.sum().item()

    captured = fastnn.capture(fn)
    with pytest.warns(fastnn.EagerStepWarning, match=r"\.item\(\).*\(test_surroundings\.py:\d+\)"):
        captured(torch.ones(2))
