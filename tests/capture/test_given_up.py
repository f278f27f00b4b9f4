"""Recordings that do not last: kept as long as they pay, then given up."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastnn
from twins import same


def test_too_many_kinds_that_alternate_are_given_up_soon() -> None:
    runs = 0

    class Fn:
        def __call__(self, x: Tensor) -> Tensor:
            nonlocal runs
            runs += 1
            return x * 2

    captured = fastnn.capture(Fn().__call__)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(40):
            for n in range(1, 13):
                x = torch.ones(n)
                same(captured(x), x * 2)
    assert any("8 input signatures alternate" in str(w.message) for w in told)
    assert len(captured.programs) == 8
    before = runs
    for n in range(1, 13):
        captured(torch.ones(n))
    assert runs - before == 4  # the signatures that were given up


def test_phases_with_many_replays_are_recorded_again() -> None:
    captured = fastnn.capture(lambda x: x * 2, native=True)
    for _ in range(3):
        for n in range(1, 11):
            for _ in range(40):
                captured(torch.ones(n))
    assert len(captured.programs) == 8


def test_what_it_reads_may_change_as_often_as_recordings_pay() -> None:
    factor = 1.0

    def fn(x: Tensor) -> Tensor:
        return x * factor

    captured = fastnn.capture(fn, native=True)
    for i in range(12):
        factor = 1.0 + i
        for _ in range(40):
            same(captured(torch.ones(3)), fn(torch.ones(3)))
    assert len(captured.programs) == 8


class Annealed:
    def __init__(self) -> None:
        self.k, self.table, self.all, self.numbers = 1.0, {"k": 1.0}, [1.0], np.ones(2)
        self.options = SimpleNamespace(scale=1.0)

    def by_attribute(self, x: Tensor) -> Tensor:
        return x * self.k

    captured = fastnn.capture(by_attribute)

    def by_entry(self, x: Tensor) -> Tensor:
        return x * self.table["k"]

    def by_length(self, x: Tensor) -> Tensor:
        return x * len(self.all)

    def by_array(self, x: Tensor) -> Tensor:
        return x * float(self.numbers[0])

    def by_attribute_of_an_attribute(self, x: Tensor) -> Tensor:
        return x * self.options.scale

    def by_variable(self) -> Callable[[Tensor], Tensor]:
        return lambda x: x * self.k


DIFFERING: dict[str, Callable[[Annealed], Callable[[Tensor], Tensor]]] = {
    "self.k": lambda a: fastnn.capture(a.by_attribute),
    "self.k ": lambda a: a.captured,
    "self.table['k']": lambda a: fastnn.capture(a.by_entry),
    "the length of self.all": lambda a: fastnn.capture(a.by_length),
    "what is in self.numbers": lambda a: fastnn.capture(a.by_array),
    "self.options.scale": lambda a: fastnn.capture(a.by_attribute_of_an_attribute),
    "self.k  ": lambda a: fastnn.capture(a.by_variable()),
    "a.k": lambda a: fastnn.capture(lambda x: x * a.k),
}


@pytest.mark.parametrize(("name", "make"), DIFFERING.items(), ids=DIFFERING)
def test_what_changes_at_every_call_is_given_up(
    name: str, make: Callable[[Annealed], Callable[[Tensor], Tensor]]
) -> None:
    annealed = Annealed()
    captured = make(annealed)

    def scaled_by(k: int) -> Tensor:
        annealed.k = annealed.table["k"] = annealed.options.scale = float(k)
        annealed.all[:], annealed.numbers[0] = [1.0] * k, k
        return captured(torch.ones(3))

    told = re.escape(f"its recordings do not last, because of {name.strip()}: pass that as an argument")
    with pytest.warns(fastnn.EagerStepWarning, match=told):
        results = [scaled_by(1 + i) for i in range(12)]
    same(results, [torch.full((3,), 1.0 + i) for i in range(12)])


def test_a_parameter_that_moves_at_every_call_is_given_up() -> None:
    weight = nn.Parameter(torch.ones(3))
    captured = fastnn.capture(lambda x: x * weight.detach().mean())

    def moved(n: int) -> Tensor:
        weight.data = torch.ones(1 + n)
        return captured(torch.ones(3))

    with pytest.warns(fastnn.EagerStepWarning, match="because of memory, gradients or hooks"):
        results = [moved(i) for i in range(20)]
    same(results, [torch.ones(3)] * 20)


class Filling:
    def __init__(self) -> None:
        self.size = 0

    def mean(self, x: Tensor) -> Tensor:
        return x.sum() / self.size


def test_what_changes_no_more_is_recorded_again() -> None:
    filling = Filling()
    captured = fastnn.capture(filling.mean)
    x = torch.ones(3)

    def called(n: int) -> Tensor:
        filling.size = n
        return captured(x)

    with pytest.warns(fastnn.EagerStepWarning, match="because of self.size"):
        same([called(1 + i) for i in range(12)], [torch.tensor(3 / (1 + i)) for i in range(12)])
    assert captured.programs == ()  # none of them would ever run
    for _ in range(70):
        same(called(12), torch.tensor(0.25))
    assert len(captured.programs) == 1


def test_recordings_that_do_not_last_evict_no_others() -> None:
    filling = Filling()
    captured = fastnn.capture(filling.mean)
    filling.size = 1
    for n in range(2, 9):
        for _ in range(3):
            captured(torch.ones(n))
    kept = {program.key for program in captured.programs}
    assert len(kept) == 7

    def called(n: int) -> Tensor:
        filling.size = n
        return captured(torch.ones(2, 2))

    with pytest.warns(fastnn.EagerStepWarning, match="because of self.size"):
        same([called(1 + i) for i in range(12)], [torch.tensor(4 / (1 + i)) for i in range(12)])
    assert len({program.key for program in captured.programs} & kept) == 6


def test_a_signature_that_alternates_beside_many_others_is_recorded() -> None:
    net = nn.Dropout(0.5)
    captured = fastnn.capture(lambda x: net(x).detach(), native=True)
    for n in range(2, 9):
        for _ in range(40):
            captured(torch.ones(n))
    for i in range(40):
        net.train(i % 2 == 0)
        captured(torch.ones(1))
    assert sum(program.native.runs > 10 for program in captured.programs[:2]) == 2
