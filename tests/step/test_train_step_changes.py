"""What a user changes between two steps: schedules, loaded states, edited data, cleared state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

import fastnn
from optimizer_cases import needs_state_begun_late
from train_steps import (
    LOSSES,
    OPTIMIZERS,
    TOLERANCE,
    Optimizer,
    chain,
    classes_of,
    eager_step,
    model_for,
    native,
    reason,
)

STEPS = 9
# The number of the step taken, model, optimizer, what is kept from step to step, and the loss.
Change = Callable[[int, Any, torch.optim.Optimizer, dict[str, Any], Tensor], None]


class Pair:
    """A model that a `TrainStep` trains, and its copy that torch trains."""

    def __init__(self, make: Optimizer) -> None:
        self.model = chain([6, 9, 5])
        self.twin = copy.deepcopy(self.model)
        self.ours, self.theirs = make(self.model.parameters()), make(self.twin.parameters())
        self.step = fastnn.TrainStep(self.model, nn.CrossEntropyLoss(), self.ours, max_norm=0.5)

    def batch(self) -> tuple[Tensor, Tensor]:
        return torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)

    def train(self, change: Change) -> None:
        """Natively throughout, matching torch's numbers."""
        kept: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        for i in range(STEPS):
            batch = self.batch()
            losses = native(self.step, *batch), self.torch_step(*batch)
            self.check(losses)
            for of, model, optimizer in zip(
                kept, (self.model, self.twin), (self.ours, self.theirs), strict=True
            ):
                with torch.random.fork_rng():
                    change(i, model, optimizer, of, losses[1])

    def torch_step(self, *batch: Tensor) -> Tensor:
        with fastnn.disabled():  # fastnn's optimizers too update with torch's functions
            return eager_step(self.twin, F.cross_entropy, self.theirs, *batch, max_norm=0.5)

    def check(self, losses: tuple[Tensor, Tensor]) -> None:
        torch.testing.assert_close(*losses, rtol=TOLERANCE, atol=TOLERANCE)
        for p, q in zip(self.model.parameters(), self.twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=TOLERANCE, atol=TOLERANCE)
            states = (dict(optimizer.state.get(r, {})) for optimizer, r in ((self.ours, p), (self.theirs, q)))
            torch.testing.assert_close(*states, rtol=TOLERANCE, atol=TOLERANCE)


def scheduled(make: Callable[[torch.optim.Optimizer], Any]) -> Change:
    def change(
        i: int, model: nn.Module, optimizer: torch.optim.Optimizer, kept: dict[str, Any], loss: Tensor
    ) -> None:
        schedule = kept.get("schedule")
        if schedule is None:
            kept["schedule"] = make(optimizer)
        elif isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
            schedule.step(loss)
        else:
            schedule.step()

    return change


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.3),
    "cosine": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.7**k),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, step_size_up=3, cycle_momentum=True),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[3]
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("make", ["adam-l2", "sgd-momentum", "rmsprop-momentum", "adagrad-decay"])
def test_schedules_set_the_rate(schedule: str, make: str) -> None:
    if (schedule, make) == ("cyclic", "adagrad-decay"):
        pytest.skip("it wants a momentum to cycle")
    Pair(OPTIMIZERS[make]).train(scheduled(SCHEDULES[schedule]))


def _load(i: int, model: Any, optimizer: Any, kept: dict[str, Any], loss: Tensor) -> None:
    """Back to an earlier state, of model and optimizer together and separately."""
    if i == 1:
        kept["state"] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    if i in (3, 5):
        model.load_state_dict(kept["state"][0])
    if i in (3, 6):
        optimizer.load_state_dict(copy.deepcopy(kept["state"][1]))


def _multiply(i: int, model: Any, optimizer: Any, kept: dict[str, Any], loss: Tensor) -> None:
    for p in model.parameters():
        p.data.mul_(0.9)


def _lerp(i: int, model: Any, optimizer: Any, kept: dict[str, Any], loss: Tensor) -> None:
    parameters = list(model.parameters())
    with torch.no_grad():
        torch._foreach_lerp_(parameters, [torch.ones_like(p) for p in parameters], 0.1)


def _new_data(i: int, model: Any, optimizer: Any, kept: dict[str, Any], loss: Tensor) -> None:
    for p in model.parameters():
        p.data = p.data * 0.9


def _clear(i: int, model: Any, optimizer: Any, kept: dict[str, Any], loss: Tensor) -> None:
    if i == 3:
        optimizer.state.clear()
    if i == 5:
        optimizer.state.pop(model[0].weight, None)


def _count(i: int, model: Any, optimizer: Any, kept: dict[str, Any], loss: Tensor) -> None:
    if i == 3:
        for state in optimizer.state.values():
            if "step" in state:
                state["step"] = torch.tensor(1000.0)


def _options(i: int, model: Any, optimizer: Any, kept: dict[str, Any], loss: Tensor) -> None:
    """All numbers of the optimizer, and the sign of its step."""
    group = optimizer.param_groups[0]
    if i in (2, 5):
        for key in ("lr", "eps", "momentum", "dampening", "alpha", "lr_decay"):
            if group.get(key):
                group[key] *= 0.7
        group["weight_decay"] = 0.05 * i
    if i in (3, 6):
        group["maximize"] = not group["maximize"]
    if i == 4 and "centered" in group:
        group["centered"] = False


def _activation(i: int, model: Any, optimizer: Any, kept: dict[str, Any], loss: Tensor) -> None:
    if i == 2:
        model[1] = nn.Tanh()
    if i == 4:
        model[1] = nn.GELU()
    if i == 6:
        model[1].approximate = "tanh"


def _append(i: int, model: Any, optimizer: Any, kept: dict[str, Any], loss: Tensor) -> None:
    if i == 4:
        torch.manual_seed(1)
        model.append(nn.Linear(5, 5, dtype=torch.float64))
        optimizer.add_param_group({"params": model[-1].parameters(), "lr": 0.05})


CHANGES = (_load, _multiply, _lerp, _new_data, _clear, _count, _options, _activation, _append)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "make",
    [
        *("adam", "adam-amsgrad", "sgd", "sgd-momentum"),
        *("rmsprop", "rmsprop-momentum", "rmsprop-all", "adagrad-decay", "adagrad-start"),
    ],
)
def test_changes_between_steps_are_noticed(change: Change, make: str) -> None:
    if change in (_clear, _append):
        needs_state_begun_late(type(OPTIMIZERS[make](nn.Linear(1, 1).parameters())))
    Pair(OPTIMIZERS[make]).train(change)


def _other_options(i: int, loss: Any) -> None:
    """A loss's options one after the other, as far as it has them."""
    for step, name, value in (
        (1, "reduction", "sum"),
        (2, "reduction", "mean"),
        (3, "beta", 0.2),
        (4, "beta", 0.0),
        (5, "beta", 3),
        (3, "delta", 0.2),
        (4, "delta", 3),
        (3, "ignore_index", 2),
        (4, "label_smoothing", 0.3),
        (5, "weight", torch.linspace(0.5, 3, 5, dtype=torch.float64)),
        (6, "pos_weight", torch.tensor(2.5, dtype=torch.float64)),
        (7, "weight", None),
        (8, "pos_weight", torch.linspace(0.2, 2, 10, dtype=torch.float64)[::2]),
    ):
        probabilities = name == "ignore_index" and isinstance(loss, nn.CrossEntropyLoss)
        if i == step and hasattr(loss, name) and not probabilities:
            setattr(loss, name, value)
    if i == 6 and isinstance(getattr(loss, "weight", None), Tensor):
        loss.weight.mul_(2)


@pytest.mark.parametrize("name", LOSSES)
def test_options_of_the_loss(name: str) -> None:
    case = LOSSES[name]
    model, loss = model_for(case, [6, 9, 5]), case.make(5)
    twin, theirs = copy.deepcopy(model), copy.deepcopy(loss)
    step = fastnn.TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.01))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for i in range(10):
        _other_options(i, loss)
        _other_options(i, theirs)
        x, y = torch.randn(7, 6, dtype=torch.float64), case.target(7, 5)
        value = native(step, x, y), eager_step(twin, theirs, optimizer, x, y)
        torch.testing.assert_close(*value, rtol=TOLERANCE, atol=TOLERANCE)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE, atol=TOLERANCE)


def test_assigned_parameters() -> None:
    """The optimizer still has the old ones, which get no gradient."""
    pair = Pair(OPTIMIZERS["adam"])
    batch = pair.batch()
    native(pair.step, *batch)
    pair.torch_step(*batch)
    old = pair.model[0].weight
    for model in (pair.model, pair.twin):
        state = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
    assert pair.model[0].weight is not old
    kept = old.detach().clone()
    assert "parameters that the chain lacks" in reason(pair.step, *batch)
    pair.torch_step(*batch)
    assert torch.equal(old, kept)
    pair.ours, pair.theirs = (OPTIMIZERS["adam"](m.parameters()) for m in (pair.model, pair.twin))
    pair.step.optimizer = pair.ours
    pair.train(lambda *_: None)


def test_a_transposed_parameter_runs_eagerly() -> None:
    pair = Pair(OPTIMIZERS["sgd"])
    batch = pair.batch()
    native(pair.step, *batch)
    pair.torch_step(*batch)
    for model in (pair.model, pair.twin):
        model[0].weight.data = model[0].weight.data.t().contiguous().t()
    assert reason(pair.step, *batch) == "a parameter is not contiguous"
    pair.torch_step(*batch)
    for model in (pair.model, pair.twin):
        model[0].weight.data = model[0].weight.data.contiguous()
    pair.train(lambda *_: None)
