"""`TrainStep.epoch`: a loop over steps, however they run."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastnn
from fastnn import _dispatch
from train_steps import OPTIMIZERS, chain

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


def a_step(dtype: torch.dtype = torch.float32, **options: Any) -> fastnn.TrainStep:
    model = nn.Sequential(nn.Flatten(), *chain([12, 8, 5], dtype=dtype))
    return fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"](model.parameters()), **options)


def data(n: int = 23) -> tuple[Tensor, Tensor]:
    return torch.randint(256, (n, 3, 4), dtype=torch.uint8), torch.randint(5, (n,))


@pytest.mark.parametrize("batch_size", [1, 7, 23, 40])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("floating", [False, True])
def test_an_epoch_equals_a_loop_of_steps(batch_size: int, native: bool, floating: bool) -> None:
    images, labels = data()
    if floating:
        images = images.float() / 100
    step = a_step(mean=0.3, std=0.5)
    if not native:
        step.model[2].register_forward_hook(lambda *_: None)
    twin = copy.deepcopy(step)
    order = torch.randperm(23)
    losses = step.epoch(images, labels, batch_size, order)
    rows = [order[i : i + batch_size] for i in range(0, 23, batch_size)]
    assert torch.equal(losses, torch.stack([twin(images[r], labels[r]) for r in rows]))
    assert not losses.requires_grad
    for p, q in zip(step.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.grad is None


def test_the_order_is_random_by_default_and_seeded() -> None:
    images, labels = data()
    step = a_step()
    twins = [copy.deepcopy(step) for _ in range(2)]
    torch.manual_seed(5)
    losses = step.epoch(images, labels, 4)
    torch.manual_seed(5)
    assert torch.equal(losses, twins[0].epoch(images, labels, 4, torch.randperm(23)))
    assert not torch.equal(losses, twins[1].epoch(images, labels, 4, torch.arange(23)))


def test_targets_of_any_shape() -> None:
    model = chain([6, 4], dtype=torch.float32)
    step = fastnn.TrainStep(model, nn.MSELoss(), OPTIMIZERS["sgd"](model.parameters()))
    assert step.epoch(torch.randn(10, 6), torch.randn(10, 4), 4).shape == (3,)


def test_a_numpy_batch_size() -> None:
    images, labels = data()
    assert len(a_step().epoch(images, labels, np.int64(5))) == 5  # type: ignore[arg-type]


def test_a_batch_size_too_large_for_an_integer() -> None:
    assert len(a_step().epoch(*data(), 2**70)) == 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"images": [1]}, TypeError, "images must be a tensor, got list"),
        ({"labels": None}, TypeError, "labels must be a tensor, got NoneType"),
        ({"permutation": [1]}, TypeError, "permutation must be a tensor, got list"),
        ({"labels": torch.zeros(22, dtype=torch.int64)}, ValueError, "got 23 images and 22 labels"),
        ({"labels": torch.tensor(1)}, ValueError, "labels has no dimension"),
        ({"labels": torch.zeros(23, device="meta")}, ValueError, "labels is on meta, expected cpu"),
        ({"permutation": torch.zeros(0).long()}, ValueError, "permutation is empty"),
        ({"permutation": torch.arange(23).int()}, TypeError, "permutation must be int64, got torch.int32"),
        ({"permutation": torch.zeros(23, 1).long()}, ValueError, "permutation must have one dimension"),
        ({"permutation": torch.arange(23) + 1}, IndexError, "out of range"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 4.0}, TypeError, "batch_size must be an int, got float"),
        ({"batch_size": True}, TypeError, "batch_size must be an int, got bool"),
        ({"images": torch.zeros(0, 12), "labels": torch.zeros(0).long()}, ValueError, "no images"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    images, labels = data()
    arguments = {"images": images, "labels": labels, "batch_size": 4, **change}
    with pytest.raises(error, match=words):
        a_step().epoch(**arguments)


def test_a_bad_label_ends_the_epoch() -> None:
    images, labels = data()
    labels[20] = 5
    step = a_step()
    twin = copy.deepcopy(step)
    with pytest.raises(IndexError, match="Target 5 is out of bounds"):
        step.epoch(images, labels, 8, torch.arange(23))
    for first in (0, 8):
        twin(images[first : first + 8], labels[first : first + 8])
    for p, q in zip(step.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(p, q)
