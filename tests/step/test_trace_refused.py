"""linear_chain of models whose forward does what a trace could miss: refused, with the reason."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn.step.chain import linear_chain

T = torch.nn
COUNT = 0
OUTSIDE = torch.ones(4)


class Net(T.Module):
    """Layers, for the forwards below."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = T.Linear(6, 5), T.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class Prints(Net):
    def forward(self, x: Tensor) -> Tensor:
        print(x.sum())
        return self.fc2(F.relu(self.fc1(x)))


class Branches(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x))) if x.sum() > 0 else x


class Stores(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.hidden = F.relu(self.fc1(x))
        return self.fc2(self.hidden)


class Counts(Net):
    def count(self) -> None:
        self.calls = getattr(self, "calls", 0) + 1

    def forward(self, x: Tensor) -> Tensor:
        self.count()
        return self.fc2(F.relu(self.fc1(x)))


class WithoutGradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = F.relu(self.fc1(x))
        return self.fc2(x)


class Decorated(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class Draws(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x))) * random.random()


class MakesNoise(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x))) + torch.randn(4)


class Augments(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.fc1(x))
        y = h
        y += 1
        return self.fc2(h), h


class ReadsAList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.settings = [2.0]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x))) * self.settings[0]


class ReadsATensor(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(F.linear(x, self.fc1.weight)))


class AsksTheType(Net):
    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            x = torch.as_tensor(x)
        return self.fc2(F.relu(self.fc1(x)))


class Catches(Net):
    def forward(self, x: Tensor) -> Tensor:
        try:
            x = x if x.sum() > 0 else -x
        except Exception:
            x = x * 100
        return self.fc2(F.relu(self.fc1(x)))


class Inherits(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class AsksForTheMode(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(F.relu(self.fc1(x)))
        return x if torch.is_grad_enabled() else x * 2


class CallsItsOwnWay(Net):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


class AnyArguments(Net):
    def forward(self, *args: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(args[0])))


class GlobalState(Net):
    def forward(self, x: Tensor) -> Tensor:
        global COUNT
        COUNT = COUNT + 1
        return self.fc2(F.relu(self.fc1(x)))


class OutsideTensor(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x))) + OUTSIDE


class HelperPrints(Net):
    def forward(self, x: Tensor) -> Tensor:
        return talking(self.fc2(F.relu(self.fc1(x))))


def talking(x: Tensor) -> Tensor:
    print("talking")
    return x


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Prints, "it uses print"),
        (Branches, "it branches on a tensor or on its shape"),
        (Stores, "it writes the attribute hidden"),
        (Counts, "it writes the attribute calls"),
        (WithoutGradient, "it uses torch.no_grad"),
        (Decorated, "nothing is known of"),
        (Draws, "it uses random.random, of which nothing is known"),
        (MakesNoise, "it uses torch.randn, of which nothing is known"),
        (Augments, "it has an augmented assignment"),
        (ReadsAList, "it reads self.settings, of type list, which may change"),
        (AsksTheType, "it uses isinstance"),
        (Catches, "it has a try statement"),
        (Inherits, "it uses super"),
        (AsksForTheMode, "it uses torch.is_grad_enabled"),
        (ReadsATensor, "it reads the tensor self.fc1.weight"),
        (CallsItsOwnWay, "CallsItsOwnWay has its own __call__"),
        (AnyArguments, "it takes any number of arguments"),
        (GlobalState, "it writes the global COUNT"),
        (OutsideTensor, "it reads OUTSIDE, of type Tensor, which may change"),
        (HelperPrints, "it uses print"),
    ],
)
def test_refusals(kind: type[T.Module], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = linear_chain(T.Sequential(kind()))
    assert isinstance(found, str)
    assert kind.__name__ in found
    assert reason in found
    assert capsys.readouterr().out == ""  # nothing ran
