"""Side effects of the Python code of a recorded forward."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn
from recorded_steps import DOUBLE, Net, batch, step_of
from train_steps import native, recorded

COUNT, OUTSIDE = 0, torch.ones(4, dtype=DOUBLE)


class WithoutGradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = F.relu(self.fc1(x))
        return self.fc2(x)


class Branches(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Stores(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.hidden = F.relu(self.fc1(x))
        return self.fc2(self.hidden)


class Counts(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.scale = self.scale * 0.9
        return super().forward(x) * self.scale


class CountsInAList(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.settings[0] *= 0.9
        return super().forward(x) * self.settings[0]


class CountsInADict(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.table["gain"] *= 0.9
        return super().forward(x) * self.table["gain"]


class Logs(Net):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.log.append(1)
        return super().forward(x) / len(self.log)


class CountsGlobally(Net):
    def forward(self, x: Tensor) -> Tensor:
        global COUNT
        COUNT += 1
        return super().forward(x) / COUNT


class KeepsABuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Draws(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * random.random()


class MakesNoise(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(4, dtype=DOUBLE)


class OutsideTensor(Net):
    def forward(self, x: Tensor) -> Tensor:
        OUTSIDE.mul_(0.9)
        return super().forward(x) + OUTSIDE


class AsksForTheMode(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if torch.is_grad_enabled() else x * 2


class CallsItsOwnWay(Net):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


class FrozenInPart(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc1.weight.requires_grad_(False)


@pytest.mark.parametrize(
    "kind",
    [
        *(Branches, Stores, Counts, CountsInAList, CountsInADict, Logs, CountsGlobally, KeepsABuffer),
        *(Draws, MakesNoise, OutsideTensor, AsksForTheMode, CallsItsOwnWay, WithoutGradient, FrozenInPart),
    ],
)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_it_trains_as_the_loop_does(kind: type[Net], grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Native or not."""
    batches = [batch() for _ in range(12)]
    model, results = kind(), []
    for off in (False, True):
        monkeypatch.setitem(globals(), "COUNT", 0)
        monkeypatch.setitem(globals(), "OUTSIDE", torch.ones(4, dtype=DOUBLE))
        twin = copy.deepcopy(model)
        step = step_of(twin, "sgd-momentum")
        torch.manual_seed(1)
        random.seed(1)
        losses = []
        for b in batches:
            with torch.set_grad_enabled(grad):
                if off:
                    with fastnn.disabled():
                        losses.append(step(*b))
                else:
                    losses.append(step(*b))
        results.append(
            (losses, list(twin.state_dict().values()), twin.scale, twin.settings, twin.table, COUNT)
        )
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=1e-9, atol=1e-9)
    assert results[0][2:] == results[1][2:]


def test_what_it_prints_is_printed_until_it_is_native(capsys: pytest.CaptureFixture[str]) -> None:
    class Prints(Net):
        def forward(self, x: Tensor) -> Tensor:
            print("here")
            return super().forward(x)

    step = recorded(step_of(Prints()), *batch())
    native(step, *batch())
    assert capsys.readouterr().out == 3 * "here\n"


def test_why_it_is_not_recorded_is_reported_once() -> None:
    step = step_of(Branches())
    with pytest.warns(fastnn.EagerStepWarning, match="and it cannot be recorded: .*a value is read") as seen:
        recorded(step, *batch())
    assert len([w for w in seen if w.category is fastnn.EagerStepWarning]) == 1
    strict = step_of(Branches(), native=True)
    with pytest.raises(RuntimeError, match="native=True, but the step cannot run natively"):
        recorded(strict, *batch())
    before = copy.deepcopy(strict.model.state_dict())
    with pytest.raises(RuntimeError, match="native=True, but the step cannot run natively"):
        strict(*batch())
    torch.testing.assert_close(strict.model.state_dict(), before, rtol=0, atol=0)


def _four(step: fastnn.TrainStep) -> None:
    for _ in range(4):
        step(*batch())


class Skips(Net):
    """It draws in each step, which hardly ever shows."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (0.0 if self.draw() < 1e-9 else 1.0)


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda: random.random(), "Python's random"),
        (random.Random(5).random, "a random.Random"),
        (lambda: np.random.rand(), "numpy.random"),
        (np.random.default_rng(5).random, "a numpy.random.Generator"),
    ],
)
def test_numbers_that_torch_does_not_draw(draw: Callable[[], float], name: str) -> None:
    step = step_of(Skips(draw))
    with pytest.warns(fastnn.EagerStepWarning, match=f"it draws from {name}, which a replay would not"):
        _four(step)


def test_hooks_of_a_model_that_the_loss_calls() -> None:
    teacher, calls = Net(), []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(x + teacher(x.detach().new_ones(7, 6)), y)

    step = step_of(Net(), loss=loss)
    recorded(step, *batch())
    native(step, *batch())
    teacher.fc1.register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(fastnn.EagerStepWarning, match="Linear has a hook"):
        _four(step)
    assert len(calls) == 4


class Frozen(Net):
    """Its own mode changes when the caller has set it, and then not."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(self.drop(x))
        self.drop.eval()
        return x


class Toggles(Frozen):
    def forward(self, x: Tensor) -> Tensor:
        self.train(not self.training)
        return super().forward(x)


@pytest.mark.parametrize("kind", [Frozen, Toggles])
def test_a_model_that_sets_its_own_mode(kind: type[Net]) -> None:
    models = [kind() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours, theirs = (step_of(model, "sgd") for model in models)
    for i in range(24):
        if i % 6 == 0:
            ours.model.train(), theirs.model.train()
        x, y = batch()
        torch.manual_seed(i)
        got = native(ours, x, y) if i > 18 else ours(x, y)
        torch.manual_seed(i)
        with fastnn.disabled():
            expected = theirs(x, y)
        torch.testing.assert_close(got, expected)
        assert [m.training for m in ours.model.modules()] == [m.training for m in theirs.model.modules()]


def test_an_epoch_of_a_model_that_sets_its_own_mode() -> None:
    models = [Frozen() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours, theirs = (step_of(model, "sgd") for model in models)
    x, y = batch(56)
    for i in range(4):
        losses = []
        for step in (ours, theirs):
            step.model.train()
            torch.manual_seed(i)
            with fastnn.disabled() if step is theirs else contextlib.nullcontext():
                losses.append(step.epoch(x, y, 7))
        torch.testing.assert_close(*losses)
        assert not ours.model.drop.training
