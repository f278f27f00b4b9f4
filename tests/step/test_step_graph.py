"""`TrainStep` on CUDA, captured in a graph: with the numbers of the eager step.

On a GPU the graphs are real; elsewhere tests/support/recorded_graph.py replaces them, with emulated
kernels.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastnn
from fastnn import _dispatch
from fastnn.step.graphs import CAPTURE_AFTER
from step_graphs import ALL_OPTIMIZERS, Batch, Graphs, Pair, adam, classes, close, reason
from train_steps import LOSSES, OPTIMIZERS, Optimizer, chain, eager_step, model_for

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


@pytest.mark.parametrize("make", ALL_OPTIMIZERS.values(), ids=ALL_OPTIMIZERS.keys())
@pytest.mark.parametrize("options", [{}, {"max_norm": 0.05, "keep_grad": True}], ids=["plain", "clip-grad"])
@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable=True")
def test_every_optimizer(make: Optimizer, options: dict[str, Any], graphs: Graphs) -> None:
    if make is ALL_OPTIMIZERS["adam-capturable"]:
        # torch's refuses parameters of the CPU.
        pair = Pair(graphs, make=OPTIMIZERS["adam"], **options)
        pair.step.optimizer = pair.optimizer = make(pair.model.parameters())
    else:
        pair = Pair(graphs, make=make, **options)
    whys = [pair.take(classes(13)) for _ in range(5)]
    assert [why is None for why in whys] == [False] * CAPTURE_AFTER + [True] * 3
    assert f"captured after {CAPTURE_AFTER} calls" in str(whys[0])
    assert graphs.captures == 1


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.2, ignore_index=2, reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0], dtype=torch.float64)),
        fastnn.nn.CrossEntropyLoss(z_loss=0.1, ignore_index=0),
        F.cross_entropy,
        fastnn.functional.cross_entropy,
    ],
    ids=["smoothed", "weighted", "z-loss", "torch function", "fastnn function"],
)
def test_every_loss_trains_as_in_torch(loss: Any, graphs: Graphs) -> None:
    pair = Pair(graphs, loss=loss)
    pair.capture(classes(13))
    pair.replay(classes(13))


def squared(m: int) -> Batch:
    return torch.randn(m, 20, dtype=torch.float64), torch.randn(m, 5, dtype=torch.float64)


@pytest.mark.parametrize("loss", [nn.MSELoss(), F.mse_loss, nn.MSELoss(reduction="sum")])
@pytest.mark.parametrize(
    "model",
    [
        lambda: fastnn.nn.MLP([20, 16, 9, 5], activation="gelu").double(),
        lambda: fastnn.nn.Sequential(fastnn.nn.Linear(20, 7), nn.Tanh(), nn.Linear(7, 5)).double(),
    ],
    ids=["MLP", "Sequential"],
)
def test_every_model_trains_as_in_torch(model: Callable[[], nn.Module], loss: Any, graphs: Graphs) -> None:
    pair = Pair(graphs, model(), loss)
    pair.capture(squared(9))
    for _ in range(2):
        pair.replay(squared(9))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "mse" and "prob" not in name])
def test_losses_that_are_not_captured(name: str, graphs: Graphs) -> None:
    case = LOSSES[name]
    pair = Pair(graphs, model_for(case, [20, 8, 5]), case.make(5))
    for _ in range(5):
        why = pair.take((torch.randn(9, 20, dtype=torch.float64), case.target(9, 5)))
        assert "is not captured" in str(why)
    assert graphs.captures == 0


def test_images_train_as_in_torch(graphs: Graphs) -> None:
    model = nn.Sequential(nn.Flatten(), *chain([20, 8, 5]))
    pair = Pair(graphs, model)
    step = fastnn.TrainStep(pair.model, F.cross_entropy, pair.optimizer, mean=0.3, std=0.5)
    for _ in range(5):
        images, y = torch.randint(256, (7, 4, 5), dtype=torch.uint8), torch.randint(5, (7,))
        x = (images.double() / 255 - 0.3) / 0.5
        expected = eager_step(pair.twin, F.cross_entropy, pair.theirs, x, y)
        close(step(images.to(graphs.device), y.to(graphs.device)), expected)
    assert graphs.captures == 1
    for p, q in zip(pair.model.parameters(), pair.twin.parameters(), strict=True):
        close(p, q)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.8),
    # Also changes betas, or the momentum.
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=8),
    "warm restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd-momentum", "adam-tensor", "sgd-tensor"])
@pytest.mark.filterwarnings("error:Detected call of `lr_scheduler.step")
def test_a_schedule_is_followed_by_one_graph(schedule: str, name: str, graphs: Graphs) -> None:
    if (schedule, name) == ("one cycle", "sgd-tensor"):
        pytest.skip("it wants a momentum to cycle")
    pair = Pair(graphs, make=ALL_OPTIMIZERS[name])
    schedules = [SCHEDULES[schedule](o) for o in (pair.optimizer, pair.theirs)]
    for _ in range(7):
        pair.take(classes(7))
        for one in schedules:
            one.step()
    assert graphs.captures == 1


def set_options(**options: Any) -> Callable[[torch.optim.Optimizer], None]:
    return lambda optimizer: optimizer.param_groups[0].update(options)


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.5}, {"betas": (0.5, 0.6)}, {"eps": 0.1}, {"weight_decay": 0.3}, {"lr": 0}],
    ids=str,
)
def test_numbers_are_read_at_each_call(options: dict[str, Any], graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    pair.both(set_options(**options))
    for _ in range(2):
        pair.replay(classes(7))


@pytest.mark.parametrize(
    "options", [{"lr": 0.5}, {"momentum": 0.3}, {"dampening": 0.5}, {"weight_decay": 0.3}], ids=str
)
def test_numbers_of_sgd_are_read_at_each_call(options: dict[str, Any], graphs: Graphs) -> None:
    pair = Pair(graphs, make=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    pair.capture(classes(7))
    pair.both(set_options(**options))
    for _ in range(2):
        pair.replay(classes(7))


@pytest.mark.parametrize("options", [{"maximize": True}, {"decoupled_weight_decay": True}], ids=str)
def test_a_changed_flag_is_captured_again(options: dict[str, Any], graphs: Graphs) -> None:
    pair = Pair(graphs, make=lambda p: adam(p, weight_decay=0.1))
    pair.capture(classes(7))
    pair.both(set_options(**options))
    pair.again(classes(7))


def test_groups_have_numbers_of_their_own(graphs: Graphs) -> None:
    def make(params: Any) -> torch.optim.Optimizer:
        first, *rest = params
        return fastnn.optim.AdamW([{"params": [first], "lr": 0.1}, {"params": rest, "weight_decay": 0.2}])

    pair = Pair(graphs, make=make)
    pair.capture(classes(7))
    pair.both(lambda o: o.param_groups[1].update(lr=0.3))
    pair.replay(classes(7))


def test_a_momentum_that_comes_later(graphs: Graphs) -> None:
    pair = Pair(graphs, make=lambda p: fastnn.optim.SGD(p, lr=0.1))
    pair.capture(classes(7))
    pair.both(set_options(momentum=0.9))
    pair.again(classes(7))


def test_what_is_returned_stays(graphs: Graphs) -> None:
    pair = Pair(graphs, keep_grad=True)
    pair.capture(classes(7))
    x, y = (t.to(graphs.device) for t in classes(7))
    loss, weight = pair.step(x, y), pair.model[0].weight
    grad, values = weight.grad, (float(loss), weight.grad.clone())
    for batch in (classes(7), classes(7)):
        pair.step(*(t.to(graphs.device) for t in batch))
    assert float(loss) == values[0]
    assert torch.equal(grad, values[1])
    assert weight.grad is not grad


def test_gradients_of_others_are_dropped(graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    for p in pair.model.parameters():
        p.grad = torch.ones_like(p)
    pair.replay(classes(7))


def test_an_epoch_is_made_of_graphs(graphs: Graphs) -> None:
    pair = Pair(graphs)
    x, y = classes(23)
    losses = pair.step.epoch(x.to(graphs.device), y.to(graphs.device), 4, torch.arange(23).to(graphs.device))
    assert graphs.captures == 1
    expected = [
        eager_step(pair.twin, pair.loss, pair.theirs, *batch)
        for batch in zip(x.split(4), y.split(4), strict=True)
    ]
    close(losses, torch.stack(expected))


def test_batches_of_several_kinds(graphs: Graphs) -> None:
    pair = Pair(graphs)
    for _ in range(4):
        for size in (8, 8, 8, 3):
            pair.take(classes(size))
    assert graphs.captures == 2
    pair.replay(classes(3))
    pair.replay(classes(8))
    for size in (1, 2):
        for _ in range(3):
            pair.take(classes(size))
    assert graphs.captures == 4
    for _ in range(3):
        assert "4 other kinds" in str(pair.take(classes(5)))
    pair.replay(classes(8))
    # Values with other strides are another kind.
    x, y = classes(8)
    assert pair.take((x.t().contiguous().t(), y)) is not None


def test_a_capture_changes_nothing_but_the_step(graphs: Graphs) -> None:
    pair = Pair(graphs)
    for _ in range(CAPTURE_AFTER):
        pair.take(classes(7))
    x, y = (t.to(graphs.device) for t in classes(7))
    random, enabled = torch.get_rng_state(), gc.isenabled()
    version = pair.model[0].weight._version
    pair.step(x, y)
    assert graphs.captures == 1
    assert torch.equal(torch.get_rng_state(), random)
    assert gc.isenabled() == enabled
    assert pair.model[0].weight._version > version


def test_an_output_that_is_stale_is_noticed(graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    x, y = (t.to(graphs.device) for t in classes(7))
    output = pair.model(x).sum()
    pair.step(x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


@pytest.mark.parametrize("options", [{}, {"state_dtype": torch.float32}, {"master_weights": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_16_bits(dtype: torch.dtype, options: dict[str, Any], graphs: Graphs) -> None:
    model = chain([20, 33, 5], dtype=dtype).to(graphs.device)
    optimizer = fastnn.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, **options)
    step = fastnn.TrainStep(model, fastnn.nn.CrossEntropyLoss(), optimizer, max_norm=1.0)
    twin = copy.deepcopy(step)
    whys = []
    for _ in range(5):
        x, y = (t.to(graphs.device) for t in classes(7))
        whys.append(reason(step, x.to(dtype), y))
        twin._runner.eager.take((x.to(dtype),), y)
        for p, q in zip(model.parameters(), twin.model.parameters(), strict=True):
            torch.testing.assert_close(p, q)
            for key, value in twin.optimizer.state[q].items():
                torch.testing.assert_close(optimizer.state[p][key], value)
    assert whys[2:] == [None] * 3


@pytest.mark.cuda
@pytest.mark.parametrize("index", [0, 1])
def test_a_replay_waits_for_nothing_and_takes_no_memory(index: int) -> None:
    if index >= torch.cuda.device_count():
        pytest.skip("needs a second GPU")
    graphs = Graphs(f"cuda:{index}")
    pair = Pair(graphs, max_norm=0.05)
    while pair.take(classes(13)) is not None:
        pass
    x, y = (t.to(graphs.device) for t in classes(13))
    pair.step(x, y)
    before = torch.cuda.memory_allocated(index)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            assert reason(pair.step, x, y) is None
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_allocated(index) == before
    assert torch.cuda.current_device() == 0
