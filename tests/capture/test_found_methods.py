"""Captured functions as Python's own: methods of every kind, pickled by name, and bound to their object."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor

import fastnn


@fastnn.capture
def _doubled(x: Tensor) -> Tensor:
    return x * 2


class Scale:
    """Methods of every kind."""

    by = 3.0

    def __init__(self, by: float = 3.0) -> None:
        self.by = by

    @fastnn.capture
    def own(self, x: Tensor) -> Tensor:
        return x * self.by

    @fastnn.capture
    @staticmethod
    def outer_static(x: Tensor) -> Tensor:
        return x * 3

    @staticmethod
    @fastnn.capture(check=False)
    def inner_static(x: Tensor) -> Tensor:
        return x * 3

    @fastnn.capture(check=False)
    @classmethod
    def outer_class(cls, x: Tensor) -> Tensor:
        return x * cls.by

    @classmethod
    @fastnn.capture
    def inner_class(cls, x: Tensor) -> Tensor:
        return x * cls.by


@pytest.mark.parametrize("name", ["outer_static", "inner_static", "outer_class", "inner_class"])
def test_static_and_class_methods(name: str) -> None:
    for _ in range(3):
        for holder in (Scale, Scale()):
            assert getattr(holder, name)(torch.ones(2)).tolist() == [3.0, 3.0]
    assert len(getattr(Scale, name).programs) == 1


def test_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(_doubled)) is _doubled
    assert pickle.loads(pickle.dumps(Scale.own)) is Scale.own
    assert copy.deepcopy(_doubled) is _doubled
    method = pickle.loads(pickle.dumps(Scale(5.0).own))
    for _ in range(4):
        assert method(torch.ones(2)).tolist() == [5.0, 5.0]
    assert len(method.programs) == 1


def test_a_bound_method_keeps_its_object_alive() -> None:
    method = Scale(4.0).own
    gc.collect()
    for _ in range(5):
        assert method(torch.ones(2)).tolist() == [4.0, 4.0]
    assert len(method.programs) == 1
    alive = weakref.ref(method.__self__)
    assert alive() is not None
    del method
    assert alive() is None


def test_a_copied_bound_method_is_bound_to_the_copy() -> None:
    scale = Scale(4.0)
    method = copy.deepcopy(scale.own)
    for _ in range(4):
        scale.own(torch.ones(2))
    method.__self__.by = 6.0
    for _ in range(4):
        assert method(torch.ones(2)).tolist() == [6.0, 6.0]
