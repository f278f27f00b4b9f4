"""docs/works-with.md: changes to a model, an optimizer or a loop during a training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import lr_scheduler, swa_utils
from torch.utils.checkpoint import checkpoint

import fastnn
from page import Cell, line
from pairs import EAGER, HIDDEN, IN, OUT, Pair, Training, batch, check, network

pytestmark = EAGER


HALF = {"rtol": 2e-2, "atol": 2e-2}  # of bfloat16, whose eps is 2^-8, over a few steps
SINGLE = {"rtol": 1e-4, "atol": 1e-6}


def single() -> torch.nn.Module:
    return network().float()


class Autocast(torch.nn.Module):
    """The usual place of autocast: around the forward, not the backward and the update."""

    def __init__(self) -> None:
        super().__init__()
        self.body = single()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.body(x).float()


@line("autocast in the forward")
def test_autocast_in_the_forward(cell: Cell) -> None:
    pair = Pair(cell.column, Autocast, loss=torch.nn.functional.cross_entropy)
    pair.steps(**HALF)
    pair.check(cell)


@line("autocast around a whole step")
def test_autocast_around_a_step(cell: Cell) -> None:
    def around() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    pair = Pair(cell.column, single)
    pair.steps(around=around, **HALF)
    pair.check(cell, around)


@line("GradScaler")
def test_a_grad_scaler_trains_the_same(cell: Cell) -> None:
    if cell.column == "step":
        pair, scaler = Pair(cell.column, single), torch.amp.GradScaler("cpu", init_scale=8.0)
        x, y = batch(dtype=torch.float32)
        check(cell, lambda x, y: scaler.scale(pair.mine.step(x, y)).backward(), x, y)
        pair.theirs.step(x, y)
        pair.compare(**SINGLE)  # the step was taken, without the scale
        return
    scalers: dict[int, Any] = {}

    def step(model: Any, loss_function: Any, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
        scaler = scalers.setdefault(id(optimizer), torch.amp.GradScaler("cpu", init_scale=8.0))
        optimizer.zero_grad()
        loss: Tensor = loss_function(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    pair = Pair(cell.column, single, body=step)
    pair.steps(**SINGLE)
    before = copy.deepcopy(pair.mine.model.state_dict())
    infinite = torch.full((3, IN), float("inf"))
    pair.each(lambda training: training.step(infinite, torch.zeros(3, dtype=torch.int64)))
    pair.compare(**SINGLE)  # the step was skipped
    torch.testing.assert_close(pair.mine.model.state_dict(), before)
    pair.check(cell)


class Checkpointed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.head = torch.nn.Linear(OUT, OUT).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))


@line("activation checkpointing")
def test_checkpointing_trains_the_same(cell: Cell) -> None:
    pair = Pair(cell.column, Checkpointed)
    pair.steps()
    pair.check(cell)


# Each adds a hook that changes what is computed, so that one that does not run is noticed.
def _forward_hook(model: Any) -> Any:
    return model[0].register_forward_hook(lambda module, args, output: output * 1.5)


def _forward_pre_hook(model: Any) -> Any:
    return model[2].register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))


def _backward_hook(model: Any) -> Any:
    return model[2].register_full_backward_hook(lambda module, grads, of_output: (grads[0] * 1.5,))


def _global_hook(model: Any) -> Any:
    def halve(module: Any, args: Any, output: Any) -> Any:
        return output / 2 if isinstance(module, torch.nn.Linear) else None

    return torch.nn.modules.module.register_module_forward_hook(halve)


def come_and_go(pair: Pair, cell: Cell, add: Callable[[Training], Any], *, for_all: bool = False) -> None:
    """Hooks are registered and removed during training, after everything that can be native has become so."""
    pair.steps()
    handles = [add(training) for training in ([pair.mine] if for_all else [pair.mine, pair.theirs])]
    try:
        pair.steps()
        pair.check(cell)
    finally:
        for handle in handles:
            handle.remove()
    pair.steps()


@pytest.mark.parametrize("add", [_forward_hook, _forward_pre_hook, _backward_hook, _global_hook])
@line("hooks of modules")
def test_hooks_of_modules(cell: Cell, add: Callable[[Any], Any]) -> None:
    come_and_go(Pair(cell.column), cell, lambda training: add(training.model), for_all=add is _global_hook)


def _gradient_hook(training: Training) -> Any:
    return next(training.model.parameters()).register_hook(lambda grad: grad * 1.5)


def _accumulated_hook(training: Training) -> Any:
    def shrink(param: Tensor) -> None:
        assert param.grad is not None
        param.grad.mul_(0.5)

    return next(training.model.parameters()).register_post_accumulate_grad_hook(shrink)


@pytest.mark.parametrize("add", [_gradient_hook, _accumulated_hook])
@line("hooks of parameters")
def test_hooks_of_parameters(cell: Cell, add: Callable[[Training], Any]) -> None:
    come_and_go(Pair(cell.column), cell, add)


@line("hooks for saved tensors")
def test_hooks_for_saved_tensors(cell: Cell) -> None:
    """They see what each step saves, and their results are used."""
    kept: list[Tensor] = []

    def pack(t: Tensor) -> int:
        kept.append(t.clone())
        return len(kept) - 1

    def around() -> Any:
        return torch.autograd.graph.saved_tensors_hooks(pack, kept.__getitem__)

    pair = Pair(cell.column)
    pair.steps()
    pair.steps(around=around)
    pair.check(cell, around)
    kept.clear()
    x, y = batch()
    with around():
        pair.mine.step(x, y)
    assert kept


@pytest.mark.parametrize("when", ["pre", "post"])
@line("hooks of optimizers")
def test_hooks_of_optimizers(cell: Cell, when: str) -> None:
    def add(training: Training) -> Any:
        def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
            with torch.no_grad():
                next(training.model.parameters()).mul_(0.9)

        return getattr(training.optimizer, f"register_step_{when}_hook")(hook)

    come_and_go(Pair(cell.column), cell, add)


class Symmetric(torch.nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh()


PARAMETRIZATIONS: dict[str, Callable[[torch.nn.Module], Any]] = {
    "own": lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
    "weight_norm": lambda layer: parametrizations.weight_norm(layer),
    "spectral_norm": lambda layer: parametrizations.spectral_norm(layer),
}


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
@line("parametrizations")
def test_parametrizations(cell: Cell, kind: str) -> None:
    def model() -> torch.nn.Module:
        made = network()
        PARAMETRIZATIONS[kind](made[0])
        return made

    pair = Pair(cell.column, model)
    pair.steps()
    pair.check(cell)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = torch.nn.Linear(IN, IN).double(), torch.nn.Linear(IN, IN).double()
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).relu())


@line("tied parameters")
def test_tied_parameters(cell: Cell) -> None:
    pair = Pair(cell.column, Tied)
    pair.steps()
    assert pair.mine.model.up.weight is pair.mine.model.down.weight
    pair.check(cell)


@line("freezing and unfreezing during training")
def test_frozen_parameters_stay(cell: Cell) -> None:
    pair = Pair(cell.column)
    pair.steps()
    for trainable in (False, True):
        pair.each(lambda training, trainable=trainable: training.model[0].requires_grad_(trainable))
        frozen = pair.mine.model[0].weight.detach().clone()
        pair.steps()
        assert torch.equal(frozen, pair.mine.model[0].weight) != trainable
        pair.check(cell)


# Each forward recreates the pruned weight as an attribute, which a replay does not.
@pytest.mark.filterwarnings("ignore:fastnn.capture. .*changes .*weight while it runs")
@line("pruning")
def test_pruned_weights_stay_pruned(cell: Cell) -> None:
    pair = Pair(cell.column)
    pair.steps(2)
    # The optimizer keeps the parameter, which is called weight_orig from here on.
    pair.each(lambda training: prune.l1_unstructured(training.model[0], "weight", 0.5))
    pair.steps()
    assert (pair.mine.model[0].weight == 0).sum() == HIDDEN * IN // 2
    pair.check(cell)
    pair.each(lambda training: prune.remove(training.model[0], "weight"))
    x, _ = batch()
    torch.testing.assert_close(pair.mine.model(x), pair.theirs.model(x))


@line("inference_mode")
def test_inference_mode_computes_the_same(cell: Cell) -> None:
    pair = Pair(cell.column)
    x, y = batch()
    model = pair.mine.model
    evaluated = fastnn.capture(lambda x: model(x)) if cell.column == "capture" else model
    with torch.inference_mode():
        for _ in range(5):
            mine, want = evaluated(x), pair.theirs.model(x)
            torch.testing.assert_close(mine, want)
            assert mine.is_inference()
        if cell.column == "step":
            check(cell, pair.mine.step, x, y)
        else:
            check(cell, evaluated, x)
    if cell.column != "step":
        pair.steps()


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 2),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's own, of SequentialLR
@pytest.mark.parametrize("name", SCHEDULES)
@line("learning rate schedulers")
def test_schedulers_train_the_same(cell: Cell, name: str) -> None:
    pair = Pair(cell.column)
    schedulers = [SCHEDULES[name](training.optimizer) for training in (pair.mine, pair.theirs)]
    for _ in range(8):
        pair.steps(1)
        for scheduler in schedulers:
            scheduler.step(*[1.0] if name == "ReduceLROnPlateau" else [])
    assert pair.mine.optimizer.param_groups[0]["lr"] == pair.theirs.optimizer.param_groups[0]["lr"]
    pair.check(cell)


AVERAGES: dict[str, Callable[[Any], Any]] = {
    "SWA": swa_utils.AveragedModel,
    "EMA": lambda model: swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9)),
}


@pytest.mark.parametrize("name", AVERAGES)
@line("SWA and EMA of weights (updated outside)")
def test_averaged_weights(cell: Cell, name: str) -> None:
    def model() -> torch.nn.Module:
        return torch.nn.Sequential(*network(), torch.nn.BatchNorm1d(OUT).double())

    pair = Pair(cell.column, model)
    averages = [AVERAGES[name](training.model) for training in (pair.mine, pair.theirs)]
    for _ in range(6):
        pair.steps(1)
        for average, training in zip(averages, (pair.mine, pair.theirs), strict=True):
            average.update_parameters(training.model)
    batches = [batch() for _ in range(3)]
    for average in averages:
        swa_utils.update_bn(batches, average)
    torch.testing.assert_close(averages[0].state_dict(), averages[1].state_dict())
    pair.check(cell)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.filterwarnings("ignore:Error detected in")  # the traceback of the forward
@line("anomaly detection")
def test_anomaly_detection(cell: Cell) -> None:
    pair = Pair(cell.column)
    pair.steps()
    pair.steps(2, torch.autograd.detect_anomaly)
    pair.check(cell, torch.autograd.detect_anomaly)
    with torch.no_grad():
        pair.mine.model[2].weight.fill_(float("nan"))
    x, y = batch()
    with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="returned nan values"):
        pair.mine.step(x, y)


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@line("deterministic algorithms")
def test_deterministic_algorithms(cell: Cell) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        pair = Pair(cell.column)
        pair.steps()
        pair.check(cell)
        runs.append(pair.mine.model.state_dict())
    for mine, again in zip(*(run.values() for run in runs), strict=True):
        assert torch.equal(mine, again)


@line("double backward")
def test_double_backward(cell: Cell) -> None:
    def penalised(model: Any, loss_function: Any, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        x = x.detach().requires_grad_()
        loss = loss_function(model(x), y)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        loss = loss + slope.square().sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    pair = Pair(cell.column, body=penalised)
    pair.steps()
    pair.check(cell)
