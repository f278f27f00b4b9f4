"""TrainStep of models that are not a chain: recorded, replayed, or eager with the reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from fastnn._dispatch import Unsupported
from recorded_steps import DOUBLE, Net, WithNorms, batch, step_of
from train_steps import (
    ELEMENTWISE,
    OPTIMIZERS,
    TOLERANCE,
    chain,
    classes_of,
    compare,
    eager_step,
    native,
    recorded,
)


class Residual(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x) + x[:, :5].tanh())


class Attention(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2((h @ h.t()).softmax(-1) @ h)


class Inherits(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.05, "keep_grad": True}], ids=["plain", "clip-grad"])
@pytest.mark.parametrize("make", ["adam-l2", "sgd-momentum", "rmsprop", "adagrad"])
@pytest.mark.parametrize("kind", [Net, WithNorms, Residual, Attention, Inherits])
def test_hand_written_forwards(kind: type[Net], make: str, options: dict[str, Any]) -> None:
    compare(
        kind(), F.cross_entropy, OPTIMIZERS[make], [batch(7), batch(33)], TOLERANCE, recorded=True, **options
    )


def test_another_optimizer_and_another_loss() -> None:
    compare(
        Net(),
        nn.MultiMarginLoss(),
        lambda p: torch.optim.NAdam(p, lr=1e-2),
        [batch()],
        TOLERANCE,
        recorded=True,
    )


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_output_without_second_dimension(name: str) -> None:
    class Value(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :1].squeeze(-1)

    case = ELEMENTWISE[name]
    batches = [(torch.randn(m, 6, dtype=DOUBLE), case.target(m, 1).squeeze(1)) for m in (9, 40)]
    compare(Value(), case.make(1), OPTIMIZERS["adam-l2"], batches, TOLERANCE, recorded=True)


@pytest.mark.parametrize(
    "output",
    [
        lambda x: F.log_softmax(x, 1),
        lambda x: torch.log_softmax(x, dim=-1),
        lambda x: x.log_softmax(dim=1),
    ],
)
def test_nll_of_a_log_softmax_in_the_forward(output: Callable[[Tensor], Tensor]) -> None:
    class LogProbabilities(Net):
        def forward(self, x: Tensor) -> Tensor:
            return output(super().forward(x))

    compare(
        LogProbabilities(), nn.NLLLoss(), OPTIMIZERS["adam-l2"], [batch(), batch(9)], TOLERANCE, recorded=True
    )


def test_images_train_as_in_torch() -> None:
    model = WithNorms()
    twin = copy.deepcopy(model)
    theirs = OPTIMIZERS["sgd"](twin.parameters())
    step = step_of(model, "sgd", mean=0.1, std=0.3)
    for i in range(6):
        x, y = torch.randint(256, (5, 6), dtype=torch.uint8), classes_of(5, 4)
        if i > 3:
            native(step, x, y)
        else:
            step(x, y)
        eager_step(twin, F.cross_entropy, theirs, (x.double() / 255 - 0.1) / 0.3, y)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE, atol=TOLERANCE)


def test_dropout_draws_torchs_numbers() -> None:
    model = nn.Sequential(*chain([6, 16]), nn.Dropout(0.3), *chain([16, 4]))
    twin = copy.deepcopy(model)
    theirs = OPTIMIZERS["adam-l2"](twin.parameters())
    step, batches = step_of(model, "adam-l2"), [batch() for _ in range(6)]
    torch.manual_seed(3)
    losses = [step(*b) for b in batches]
    torch.manual_seed(3)
    expected = [eager_step(twin, F.cross_entropy, theirs, *b) for b in batches]
    torch.testing.assert_close(losses, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_what_is_compiled_or_clears_by_itself_is_eager() -> None:
    class Clears(Net):
        def zero_grad(self, set_to_none: bool = True) -> None:
            super().zero_grad(set_to_none)

    compiled = Net()
    compiled.compile(backend="eager")
    for model in (torch.compile(Net(), backend="eager"), compiled, Clears()):
        step = step_of(model)
        with pytest.warns(fastnn.EagerStepWarning, match="is compiled|its own zero_grad"):
            step(*batch())
        for _ in range(4):
            assert dict(fastnn.explain(step, *batch()).decisions)["train_step"] is not None


def test_a_batch_that_cannot_be_recorded_leaves_others_alone() -> None:
    step = step_of(Net(), native=True)
    x, y = batch()
    recorded(step, x, y)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="native=True"):
            step(x.requires_grad_() * 1, y)
    x = x.detach()
    recorded(step, x[:5], y[:5])
    native(step, x[:5], y[:5])
    native(step, x, y)


def test_a_batch_of_another_size_is_recorded_beside_the_first() -> None:
    step = recorded(step_of(WithNorms()), *batch(7))
    recorded(step, *batch(9))
    for m in (7, 9, 7):
        native(step, *batch(m))


def test_a_bad_class_changes_nothing() -> None:
    step = recorded(step_of(Net()), *batch())
    x, y = batch()
    y[3] = 4
    before = copy.deepcopy((step.model.state_dict(), step.optimizer.state_dict()))
    with pytest.raises(IndexError, match="Target 4 is out of bounds"):
        step(x, y)
    torch.testing.assert_close((step.model.state_dict(), step.optimizer.state_dict()), before, rtol=0, atol=0)
    native(step, *batch())


def test_a_refusal_that_leaks_from_a_step_under_way_is_an_error() -> None:
    """The step may have changed something: it must not be taken again, eagerly."""

    class Leaks(Net):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            raise Unsupported("leaked")

    step = step_of(Leaks())
    for calls in (1, 2):
        with pytest.raises(Unsupported, match="leaked"):
            step(*batch())
        assert step.model.calls == calls


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_a_scripted_model_stays_eager() -> None:
    twin = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    model = torch.jit.script(copy.deepcopy(twin))
    step = fastnn.TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    theirs = torch.optim.SGD(twin.parameters(), lr=0.1)
    batches = [(torch.randn(6, 4), torch.randn(6, 3)) for _ in range(5)]
    with pytest.warns(fastnn.EagerStepWarning, match="where they are not watched"):
        losses = [step(x, y) for x, y in batches]
    for loss, (x, y) in zip(losses, batches, strict=True):
        torch.testing.assert_close(loss, eager_step(twin, nn.MSELoss(), theirs, x, y))
