"""convert of modules whose forward is seen through and holds nothing to fuse: explain says why."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn

T = torch.nn
NOTHING = "no Linear is followed, directly and only, by a Linear or an activation that fuses"


class Net(T.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = T.Linear(4, 4), T.Linear(4, 4)
        self.norm = T.LayerNorm(4)
        self.body = T.Sequential(T.Linear(4, 4), T.ReLU(), T.Linear(4, 4))


class OtherActivation(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.leaky_relu(self.a(x)))


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h.relu_()
        return self.b(h)


class Clamps(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(self.a(x), min=0)


class Normalizes(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.a(x)))


class Head(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.body(x))


class WhileTraining(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).exp() if self.training else self.b(x).sin()


class Many(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).exp() + self.a(x).sin() + self.b(x).cos() + self.b(x).square() + self.b(x).abs()


class NoLinear(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x))


class Fuses(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.leaky_relu(F.relu(self.a(x))))


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (OtherActivation, "leaky_relu(a, negative_slope=0.01, inplace=False); return"),
        (InPlace, "a.relu_() and b(a); return"),
        (Clamps, "clamp(a, min=0)"),
        (Normalizes, "norm(a)"),
        (Head, "return"),
        (WhileTraining, "b.sin(); a.exp()"),
        (Many, "a.exp(); a_1.sin(); b.cos(); b_1.square(); ..."),
    ],
)
def test_reasons(kind: type[T.Module], found: str) -> None:
    model = kind()
    x = torch.randn(3, 4)
    expected = copy.deepcopy(model)(x)
    (decision,) = fastnn.explain(fastnn.convert, T.ModuleDict({"net": model})).decisions
    assert decision == (f"forward of net ({kind.__name__})", f"{NOTHING} (found: {found})")
    assert type(model) is kind
    # Its layers run by themselves as they should: no call says so again.
    seen = fastnn.explain(model, x)
    assert not [op for op, _ in seen.decisions if "forward" in op]
    torch.testing.assert_close(seen.result, expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), expected)


def test_nothing_is_said_where_there_is_no_linear() -> None:
    assert fastnn.explain(fastnn.convert, NoLinear()).decisions == ()


def test_nothing_is_said_where_something_was_fused() -> None:
    decisions = fastnn.explain(fastnn.convert, Fuses()).decisions
    assert decisions == (("forward of Fuses", None),)


def test_nothing_is_said_of_a_sequential() -> None:
    chain = T.Sequential(T.Linear(4, 4), T.ReLU(), T.Linear(4, 4))
    lone = T.Sequential(T.Linear(4, 4), T.LeakyReLU())
    assert fastnn.explain(fastnn.convert, T.Sequential(chain, lone)).decisions == ()


def test_a_forward_that_stops_to_fuse_is_no_error() -> None:
    """A copy traces anew: by then its layers may be others."""
    model = fastnn.convert(Fuses())
    model.a = T.Identity()
    x = torch.randn(3, 4)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
