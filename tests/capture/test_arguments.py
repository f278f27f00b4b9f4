"""Signatures, results, and functions of every kind."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import fastnn
from twins import batch, classify, net, same


class Pair(NamedTuple):
    """A batch as returned by replay buffers."""

    x: torch.Tensor
    y: torch.Tensor


@fastnn.capture
def _scaled(parts: Any, *, by: float = 2.0, flip: bool = False) -> Any:
    with torch.no_grad():
        x, y = parts["pair"]
        total = x * by + parts["rest"][0].sum()
        return Pair(total, -y if flip else y.abs()), {"first": x[0], "same": x, "number": 3}


def test_nested_arguments_and_results() -> None:
    for _ in range(4):
        x, y, z = torch.randn(4), torch.randn(5), torch.randn(2, 2)
        pair, rest = _scaled({"pair": Pair(x, y), "rest": [z]})
        assert type(pair) is Pair
        same([pair, rest["first"]], [x * 2 + z.sum(), y.abs(), x[0]])
        assert rest["same"] is x
        assert rest["first"].data_ptr() == x.data_ptr()
        assert rest["number"] == 3
    count = len(_scaled.programs)
    assert count == 1
    for by, flip in ((3.0, False), (3, False), (3.0, True)):
        for _ in range(4):
            x, y = torch.randn(4), torch.randn(5)
            pair, _ = _scaled({"pair": Pair(x, y), "rest": [torch.zeros(1, 1)]}, by=by, flip=flip)
            same(pair, [x * by, -y if flip else y.abs()])
    assert len(_scaled.programs) == count + 3


@pytest.mark.parametrize(("a", "b"), [(1, True), (1, 1.0), (0.0, -0.0)])
def test_values_that_are_equal_but_not_the_same(a: Any, b: Any) -> None:
    tell = fastnn.capture(lambda x, v: (x + 1, v))
    for _ in range(3):
        for v in (a, b):
            assert repr(tell(torch.zeros(2), v)[1]) == repr(v)


def test_shapes_strides_and_grad_mode_are_part_of_the_signature() -> None:
    model = net()
    run = fastnn.capture(lambda x: model(x).detach())
    inputs = [torch.randn(4, 8), torch.randn(5, 8), torch.randn(8, 4).t(), torch.randn(8, 8)[::2]]
    for _ in range(3):
        for x in inputs:
            same(run(x), model(x))
            with torch.no_grad():
                same(run(x), model(x))
    assert len(run.programs) == 8
    for rows in (1, 2):  # only the eight most recent are kept
        for _ in range(3):
            run(torch.randn(rows, 8))
    assert len(run.programs) == 8
    same(run(inputs[0]), model(inputs[0]))


def test_eight_programs_and_many_signatures() -> None:
    double = fastnn.capture(lambda x: x * 2)
    for rows in range(64):
        for _ in range(2):
            same(double(torch.ones(rows)), torch.ones(rows) * 2)
    with pytest.warns(fastnn.EagerStepWarning, match="64 different signatures"):
        same(double(torch.ones(64)), torch.ones(64) * 2)
    assert len(double.programs) == 8


def test_results_are_fresh() -> None:
    double = fastnn.capture(lambda x: (x * 2, x.sum()))
    results = [double(torch.full((3,), float(i))) for i in range(6)]
    for i, (doubled, total) in enumerate(results):
        assert doubled.tolist() == [2.0 * i] * 3
        assert total.item() == 3.0 * i


def test_arguments_written_in_place() -> None:
    @fastnn.capture
    def fill(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(y)
        return y.mul_(2)

    for _ in range(5):
        x, y = torch.ones(3), torch.ones(3)
        version = y._version
        assert fill(x, y) is y
        assert x.tolist() == [2.0] * 3
        assert y.tolist() == [2.0] * 3
        assert y._version > version


def test_arguments_that_share_memory() -> None:
    @fastnn.capture
    def fill(x: torch.Tensor, y: torch.Tensor) -> None:
        x.add_(1)
        y.mul_(2)

    def expected(x: torch.Tensor, y: torch.Tensor) -> None:
        x.add_(1)
        y.mul_(2)

    for _ in range(4):
        for cut in (None, 0, 1):
            pair = []
            for f in (fill, expected):
                base = torch.arange(6.0)
                f(base[:4], torch.arange(4.0) if cut is None else base[cut : cut + 4])
                pair.append(base)
            assert torch.equal(*pair)


def test_parameters_as_arguments() -> None:
    model = net()

    @fastnn.capture
    def shrink(weight: torch.Tensor, by: float) -> None:
        with torch.no_grad():
            weight.mul_(by)

    for _ in range(4):
        for layer in (model[0], model[2]):
            before = layer.weight.detach().clone()
            shrink(layer.weight, 0.5)
            same(layer.weight.detach(), before * 0.5)
    assert len(shrink.programs) == 2


class Agent:
    """An object whose method is captured."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.net = net()
        self.optimizer = torch.optim.Adam(self.net.parameters())

    @fastnn.capture
    def learn(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Take a step."""
        loss: torch.Tensor = classify(self.net, self.optimizer)(x, y)
        return loss


def test_methods_have_programs_for_each_object() -> None:
    agents, twins = [[Agent(seed) for seed in (1, 2)] for _ in range(2)]
    for _ in range(5):
        data = batch()
        for agent, twin in zip(agents, twins, strict=True):
            same(agent.learn(*data), classify(twin.net, twin.optimizer)(*data))
    assert [len(agent.learn.programs) for agent in agents] == [1, 1]
    assert Agent.learn.__doc__ == "Take a step."
    gone = weakref.ref(agents[0])
    del agents, agent
    gc.collect()
    assert gone() is None


def test_copies_and_pickles_start_without_programs() -> None:
    for _ in range(4):
        _scaled({"pair": (torch.ones(1), torch.ones(1)), "rest": [torch.ones(1)]})
    assert pickle.loads(pickle.dumps(_module_level)).programs == ()
    agent = Agent(1)
    for _ in range(4):
        agent.learn(*batch())
    twin = copy.deepcopy(agent)
    for _ in range(4):
        data = batch()
        same(twin.learn(*data), agent.learn(*data))
    assert twin.learn.programs
    assert twin.learn is not agent.learn


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


_module_level = fastnn.capture(_doubled)


def test_a_module_and_a_bound_method() -> None:
    model = nn.BatchNorm1d(8)
    twin = copy.deepcopy(model)
    run = fastnn.capture(model)
    for train in (True, False, True):
        model.train(train)
        twin.train(train)
        for _ in range(4):
            x = torch.randn(4, 8)
            with torch.no_grad():
                same(run(x), twin(x))
        same(list(model.buffers()), list(twin.buffers()))
    assert len(run.programs) == 2


def test_arguments_that_are_parts_of_one_tensor() -> None:
    """New ones in each call: the columns of a batch, or the results of `unbind`."""

    @fastnn.capture
    def join(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return torch.cat([c, a, b], 1) ** 2

    for cut in (lambda t: t.unbind(0), lambda t: (t[2], t[0], t[1]), lambda t: t[0].split(1, 1)):
        for _ in range(5):
            parts = cut(torch.randn(3, 11, 3))
            assert torch.equal(join(*parts), torch.cat([parts[2], parts[0], parts[1]], 1) ** 2)
        seen = len(join.programs)
        join(*cut(torch.randn(3, 11, 3)))
        assert len(join.programs) == seen
        assert join.programs[0].checked
