"""`TrainStep.epoch` on the CPU: many steps per native call, bit for bit the steps of a loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from fastnn import _dispatch
from train_epochs import a_step, assert_same_state, data, loop, native_calls, same_as_the_loop, step_by_step
from train_steps import LOSSES, OPTIMIZERS, chain, target_for

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"max_norm": 0.05}, {"keep_grad": True}, {"max_norm": 0.05, "keep_grad": True}],
    ids=["plain", "clip", "grad", "clip-grad"],
)
@pytest.mark.parametrize("with_rates", [False, True])
def test_every_optimizer(optimizer: str, options: dict[str, Any], with_rates: bool) -> None:
    images, labels = data()
    step = a_step(optimizer, **options)
    own = [group["lr"] for group in step.optimizer.param_groups]
    version = step.model[1].weight._version
    for _ in range(2):
        order = torch.randperm(23)
        rates = [0.02, 0.0, 1e-3, 0.01, 0.005] if with_rates else None
        calls = same_as_the_loop(step, images, labels, 5, order, rates)
        assert calls == 2, "four batches of 5, one of 3"
    assert [group["lr"] for group in step.optimizer.param_groups] == own
    assert step.model[1].weight._version > version


@pytest.mark.parametrize("features", [1, 15, 16, 17, 64, 200])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_rows_of_any_width(isa: str, features: int, dtype: torch.dtype) -> None:
    model = chain([features, 9, 3], dtype=torch.float64 if dtype is torch.float64 else torch.float32)
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"](model.parameters()))
    images = torch.randint(256, (70, features)).to(dtype)
    labels = torch.randint(3, (70,), dtype=torch.uint8 if features == 17 else torch.int64)
    order = torch.randperm(70)
    same_as_the_loop(step, images, labels, 32, order)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (nn.CrossEntropyLoss(ignore_index=2, label_smoothing=0.1), torch.randint(5, (23,))),
        (nn.CrossEntropyLoss(torch.rand(5)), torch.randint(5, (23,))),
        (nn.CrossEntropyLoss(reduction="sum"), torch.randint(5, (23,))),
    ],
    ids=["ignored-smooth", "weighted", "sum"],
)
def test_cross_entropy_options(loss: nn.Module, labels: Tensor) -> None:
    images, _ = data()
    step = a_step(loss=loss)
    order = torch.randperm(23)
    same_as_the_loop(step, images, labels, 6, order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_equals_a_loop_of_steps(name: str, reduction: str, dtype: torch.dtype) -> None:
    case = LOSSES[name]
    step = a_step(loss=case.make(5, reduction=reduction).to(dtype), dtype=dtype)
    images, _ = data()
    labels, order = target_for(case, 23, 5, dtype), torch.randperm(23)
    assert same_as_the_loop(step, images, labels, 6, order) == 2
    if labels.is_floating_point():
        labels = torch.cat([labels, labels], 1)[:, 3:8]  # rows with gaps
    else:
        labels = labels.masked_fill(labels == 1, 0)  # a batch of one ignored row has the loss NaN
    assert same_as_the_loop(step, images, labels, 1, order) == 1


def test_weights_that_a_step_writes() -> None:
    """Each step reads them again."""
    step = a_step("sgd", nn.BCEWithLogitsLoss(pos_weight=torch.ones(5)))
    twin = copy.deepcopy(step)
    for each in (step, twin):
        each.loss.pos_weight = each.model[-1].bias.detach()
    images, _ = data()
    labels, order = torch.rand(23, 5), torch.randperm(23)
    losses, _ = native_calls(step, images, labels, 5, order)
    assert torch.equal(losses, loop(twin, images, labels, 5, order))
    assert_same_state(step, twin)


def test_some_rows_again_and_others_not_at_all() -> None:
    images, labels = data()
    labels[7] = 99  # never read
    step = a_step()
    order = torch.tensor([3, 3, 22, 0, 5, 1, 1, 1, 20])
    same_as_the_loop(step, images, labels, 4, order)
    more = torch.arange(46) % 23
    labels[7] = 0
    assert len(step.epoch(images, labels, 4, more[::2])) == 6, "strided"
    assert len(step.epoch(images, labels, 4, more)) == 12, "more than there are images"


def test_rows_with_a_pitch() -> None:
    """Rows of a wider matrix; contiguous columns are left to the loop."""
    wide, labels, order = torch.randn(23, 20), torch.randint(5, (23,)), torch.randperm(23)
    step = a_step()
    assert same_as_the_loop(step, wide[:, 3:15], labels, 5, order) == 2
    turned = wide.t().contiguous().t()[:, 3:15]
    twin = copy.deepcopy(step)
    losses, reason = step_by_step(step, turned, labels, 5, order)
    assert reason.startswith("the rows of the images are not contiguous; and ")
    assert torch.equal(losses, loop(twin, turned, labels, 5, order))
    assert_same_state(step, twin)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (nn.CrossEntropyLoss(), torch.randint(5, (23, 3))[:, 1]),
        (nn.CrossEntropyLoss(), torch.tensor(3).expand(23)),
        (nn.MSELoss(), torch.randn(23, 9)[:, 2:7]),
        (nn.MSELoss(), torch.randn(1, 5).expand(23, 5)),
    ],
    ids=["column", "expanded", "columns", "expanded-rows"],
)
def test_targets_cut_out_of_a_table(loss: nn.Module, labels: Tensor) -> None:
    images, _ = data()
    assert same_as_the_loop(a_step(loss=loss), images, labels, 5, torch.randperm(23)) == 2


def test_targets_whose_rows_are_not_contiguous() -> None:
    images, _ = data()
    labels = torch.randn(5, 23).t()
    step = a_step(loss=nn.MSELoss())
    twin = copy.deepcopy(step)
    losses, reason = step_by_step(step, images, labels, 5, torch.arange(23))
    assert reason.startswith("the rows of the targets are not contiguous; and ")
    assert torch.equal(losses, loop(twin, images, labels, 5, torch.arange(23)))


@pytest.mark.parametrize("optimizer", ["adam", "adagrad-decay"])
def test_parameters_that_are_not_as_far(optimizer: str) -> None:
    """Their step counts coincide: step 5 of one uses the rate of one step, step 5 of the other the next
    rate."""
    images, labels = data()
    step = a_step(optimizer)
    first, *_, last = step.model.parameters()
    step(images, labels)
    step.optimizer.state[first]["step"] += 1
    step.optimizer.state[last]["step"] += 2
    order, rates = torch.randperm(20), [0.1, 0.01, 0.001, 0.0001]
    same_as_the_loop(step, images, labels, 5, order, rates)


@pytest.mark.parametrize(
    ("optimizer", "one", "other"),
    [
        (torch.optim.AdamW, {"weight_decay": 0.1}, {}),
        (torch.optim.RMSprop, {"momentum": 0.5}, {"centered": True}),
        (fastnn.optim.Adagrad, {"lr_decay": 0.1}, {"weight_decay": 0.1}),
    ],
)
def test_groups_keep_their_options(optimizer: Any, one: dict[str, Any], other: dict[str, Any]) -> None:
    images, labels = data()
    model = chain([12, 8, 5], dtype=torch.float32)
    groups = [{"params": layer.parameters(), **more} for layer, more in ((model[0], one), (model[2], other))]
    step = fastnn.TrainStep(
        nn.Sequential(nn.Flatten(), model), nn.CrossEntropyLoss(), optimizer(groups, lr=1e-3)
    )
    order, rates = torch.randperm(23), [0.1, 0.02, 0.01]
    same_as_the_loop(step, images, labels, 8, order, rates)
    assert [group["lr"] for group in step.optimizer.param_groups] == [1e-3, 1e-3]


def test_epochs_of_many_steps_are_several_calls() -> None:
    rows = torch.arange(2 * 2050 + 1) % 23
    assert same_as_the_loop(a_step(), *data(), 2, rows) == 3, "2048 and 2 batches of 2, one of 1"


def _wide_step(*widths: int) -> fastnn.TrainStep:
    model = nn.Sequential(nn.Flatten(), chain([12, *widths], dtype=torch.float32))
    return fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"](model.parameters()))


def test_epochs_of_long_steps_are_several_calls() -> None:
    rows = torch.arange(2 * 30 + 1) % 23
    calls = same_as_the_loop(_wide_step(8192, 128), *data(), 2, rows)
    assert calls == 3, "25 and 5 batches of 2, one of 1"


def test_at_least_one_step_a_call() -> None:
    rows = torch.arange(200_000) % 23
    assert native_calls(_wide_step(300, 5), *data(), 100_000, rows)[1] == 2


def test_same_for_every_number_of_threads() -> None:
    model = chain([100, 130, 10], dtype=torch.float32)
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"](model.parameters()))
    images, labels, order = torch.randn(700, 100), torch.randint(10, (700,)), torch.randperm(700)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 8):  # more than there are processors: they sleep at the barrier
            torch.set_num_threads(count)
            twin = copy.deepcopy(step)
            results.append((twin.epoch(images, labels, 300, order), *twin.model.parameters()))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_rates_may_be_numpy_numbers() -> None:
    step = a_step()
    twin = copy.deepcopy(step)
    images, labels = data()
    rates = torch.tensor([0.1, 0.02, 0.01], dtype=torch.float64)
    losses, _ = native_calls(step, images, labels, 8, torch.arange(23), lr=rates.numpy())
    assert torch.equal(losses, loop(twin, images, labels, 8, torch.arange(23), rates.tolist()))
    assert_same_state(step, twin)
