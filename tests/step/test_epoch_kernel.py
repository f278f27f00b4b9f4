"""`TrainStep.epoch` in one launch: the same as the loop, and left to the loop if necessary."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from cuda_emulation import Emulation
from fastnn import _dispatch
from fastnn.capture import cuda_graph
from fastnn.step import epoch, epoch_kernel
from train_steps import chain

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.cuda), "emulated"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernel runs: on a GPU, or emulated on tensors of the CPU."""
    if request.param == "cuda":
        return "cuda"
    emulation: Emulation = request.getfixturevalue("emulated")
    emulation.checks.set_order("reverse", 0)
    monkeypatch.setattr(_dispatch, "native", lambda _: emulation.cuda)
    monkeypatch.setattr(epoch, "_has_kernels", lambda _: True)
    return "cpu"


def a_step(device: str, **options: Any) -> fastnn.TrainStep:
    model = nn.Sequential(nn.Flatten(), *chain([12, 8, 5], dtype=torch.float32)).to(device)
    optimizer = fastnn.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.1)
    return fastnn.TrainStep(model, nn.CrossEntropyLoss(), optimizer, mean=0.3, std=0.5, **options)


def data(device: str) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.randint(256, (23, 3, 4), dtype=torch.uint8)
    return images.to(device), torch.randint(5, (23,)).to(device), torch.randperm(23).to(device)


def decided(step: fastnn.TrainStep, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    seen = fastnn.explain(step.epoch, *arguments, **options)
    return next(d.reason for d in seen.decisions if d.op == "train_epoch"), seen.result


def compare(step: fastnn.TrainStep, twin: fastnn.TrainStep, losses: Tensor, expected: Tensor) -> None:
    """Both are float32; the loop's kernels sum in another order."""
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    for p, q in zip(step.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)
        assert p.grad is None
        for key in ("exp_avg", "exp_avg_sq", "step"):
            ours, theirs = step.optimizer.state[p][key], twin.optimizer.state[q][key]
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [8, 30])
def test_same_as_the_loop(batch_size: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, order = data(device)
    step = a_step(device)
    twin = copy.deepcopy(step)
    version = step.model[1].weight._version
    for _ in range(2):
        why, losses = decided(step, images, labels, batch_size, order)
        assert why is None
        rows = order.split(batch_size)
        compare(step, twin, losses, torch.stack([twin(images[r], labels[r]) for r in rows]))
    assert step.model[1].weight._version == version + 2
    # The scheduler sees that the optimizer has stepped, and the next epoch sees the scheduler's rate.
    torch.optim.lr_scheduler.StepLR(step.optimizer, 1).step()
    torch.optim.lr_scheduler.StepLR(twin.optimizer, 1).step()
    _, losses = decided(step, images, labels, batch_size, order)
    compare(step, twin, losses, torch.stack([twin(images[r], labels[r]) for r in rows]))


def test_some_rows_at_rates_of_their_own(device: str) -> None:
    images, labels, order = data(device)
    step = a_step(device)
    twin = copy.deepcopy(step)
    rows, rates = torch.cat([order[:12], order[:7]]), [0.02, 0.0, 0.01]
    why, losses = decided(step, images, labels, 8, rows, lr=rates)
    assert why is None
    expected = []
    for batch, rate in zip(rows.split(8), rates, strict=True):
        twin.optimizer.param_groups[0]["lr"] = rate
        expected.append(twin(images[batch], labels[batch]))
    compare(step, twin, losses, torch.stack(expected))
    assert step.optimizer.param_groups[0]["lr"] == 1e-2
    assert counts(step) == [3] * 4


def _hook(step: fastnn.TrainStep) -> None:
    step.model[2].register_forward_hook(lambda *_: None)


def _parameter_hook(step: fastnn.TrainStep) -> None:
    step.model[1].weight.register_hook(lambda g: g)


def _freeze(step: fastnn.TrainStep) -> None:
    step.model[1].bias.requires_grad_(False)


def _group(**options: Any) -> Callable[[fastnn.TrainStep], None]:
    return lambda step: step.optimizer.param_groups[0].update(options)


def _set(**attributes: Any) -> Callable[[fastnn.TrainStep], None]:
    def change(step: fastnn.TrainStep) -> None:
        for name, value in attributes.items():
            setattr(step, name, value)

    return change


def _log_likelihood(step: fastnn.TrainStep) -> None:
    step.model.append(nn.LogSoftmax(1))
    step.loss = nn.NLLLoss()


def _no_bias(step: fastnn.TrainStep) -> None:
    step.model[1].bias = None


def _sgd(step: fastnn.TrainStep) -> None:
    step.optimizer = torch.optim.SGD(step.model.parameters(), lr=0.1)


def _rmsprop(step: fastnn.TrainStep) -> None:
    step.optimizer = torch.optim.RMSprop(step.model.parameters(), lr=0.01)


def _two_groups(step: fastnn.TrainStep) -> None:
    first, *rest = step.model.parameters()
    step.optimizer = torch.optim.Adam([{"params": [first]}, {"params": rest}])


def _fewer_parameters(step: fastnn.TrainStep) -> None:
    step.optimizer = torch.optim.Adam(list(step.model.parameters())[:3])


def _deeper(step: fastnn.TrainStep) -> None:
    step.model = nn.Sequential(nn.Flatten(), *chain([12, 8, 8, 5], dtype=torch.float32))
    step.model.to(next(iter(step.optimizer.param_groups[0]["params"])).device)
    step.optimizer = torch.optim.Adam(step.model.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_hook, "has a hook"),
        (_parameter_hook, "a parameter has a hook"),
        (_freeze, "frozen"),
        (_no_bias, "a layer has no bias"),
        (_deeper, "not two linear layers"),
        (_sgd, "no epoch kernel for SGD"),
        (_rmsprop, "no epoch kernel for RMSprop"),
        (_two_groups, "several parameter groups"),
        (_fewer_parameters, "other parameters than the model"),
        (_group(amsgrad=True), "amsgrad is set"),
        (_group(maximize=True), "maximize is set"),
        (_set(max_norm=1.0), "max_norm is set"),
        (_set(keep_grad=True), "keep_grad is set"),
        (_set(loss=nn.CrossEntropyLoss(label_smoothing=0.1)), "not the plain mean"),
        (_set(loss=nn.CrossEntropyLoss(reduction="sum")), "not the plain mean"),
        (_log_likelihood, "not the plain mean"),
        (_set(loss=lambda x, y: nn.functional.cross_entropy(x, y)), "no native loss"),
    ],
)
def test_left_to_the_loop(change: Callable[[fastnn.TrainStep], None], words: str, device: str) -> None:
    images, labels, order = data(device)
    step = a_step(device)
    twin = copy.deepcopy(step)
    for each in (step, twin):  # a copy of a changed one would lack the hooks of its tensors
        torch.manual_seed(1)
        change(each)
    why, losses = decided(step, images, labels, 8, order)
    assert words in why
    assert torch.equal(losses, torch.stack([twin(images[r], labels[r]) for r in order.split(8)]))


def test_data_left_to_the_loop(device: str) -> None:
    images, labels, order = data(device)
    assert "torch.float32, not uint8" in decided(a_step(device), images.float(), labels, 8, order)[0]
    flipped = images.transpose(0, 1).contiguous().transpose(0, 1)
    assert "not contiguous" in decided(a_step(device), flipped, labels, 8, order)[0]
    assert "not a vector of int64" in decided(a_step(device), images, labels.to(torch.uint8), 8, order)[0]
    with fastnn.disabled():
        assert decided(a_step(device), images, labels, 8, order)[0] == "fastnn is disabled"


def counts(step: fastnn.TrainStep) -> list[float]:
    return [float(state["step"]) for state in step.optimizer.state.values()]


@pytest.mark.parametrize("where", [2, 3])  # of tests/cuda_emulator/runtime.cpp
def test_left_to_the_loop_without_clusters(where: int, device: str, emulated: Emulation) -> None:
    if device == "cuda":
        pytest.skip("of emulated devices")
    step = a_step(device)
    emulated.checks.put_tensors_on(where)
    try:
        why, _ = decided(step, *data(device)[:2], 8)
    finally:
        emulated.checks.put_tensors_on(0)
    assert "has no clusters of blocks" in str(why)


class NotTakenOnCuda:
    """The part of a tensor that `_take_back` uses."""

    is_cuda, device = True, torch.device("cuda:0")

    def __int__(self) -> int:
        return 0

    def zero_(self) -> None:
        pass


def test_no_capture_is_under_way_while_the_device_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    def synchronize(device: torch.device) -> None:
        with ThreadPoolExecutor(1) as others:
            waits.append(others.submit(cuda_graph.capturing.acquire, blocking=False).result())

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(cuda_graph, "why_not_now", lambda _: None)
    not_taken: Any = NotTakenOnCuda()
    optimizer = torch.optim.Adam([torch.zeros(1)])
    monkeypatch.setitem(epoch_kernel._not_taken, optimizer, epoch_kernel._NotTaken([], not_taken))
    epoch_kernel._take_back()
    assert waits == [False]
    monkeypatch.setattr(cuda_graph, "why_not_now", lambda _: "cannot be found out")
    epoch_kernel._take_back()  # nothing waits
    assert waits == [False]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _by_another_op(step: fastnn.TrainStep, images: Tensor, labels: Tensor, order: Tensor) -> None:
    fastnn.functional.cross_entropy(torch.randn(2, 5, device=images.device), labels[:2])


def _by_the_next_epoch(step: fastnn.TrainStep, images: Tensor, labels: Tensor, order: Tensor) -> None:
    step.epoch(images, labels, 8, order)


@pytest.mark.parametrize("told", [_by_another_op, _by_the_next_epoch])
def test_steps_of_a_bad_epoch_are_not_counted(told: Callable[..., None], device: str) -> None:
    images, labels, order = data(device)
    bad = labels.clone()
    bad[20] = 5
    step = a_step(device)
    step.epoch(images, labels, 8, order)
    twin = copy.deepcopy(step)
    assert step.epoch(images, bad, 8, order).isnan().all()
    wait(device)
    with pytest.raises(IndexError, match=r"Target 5 is out of bounds\."):
        told(step, images, labels, order)
    assert counts(step) == [3] * 4
    assert all(
        torch.equal(p, q) for p, q in zip(step.model.parameters(), twin.model.parameters(), strict=True)
    )
    assert torch.equal(step.epoch(images, labels, 8, order), twin.epoch(images, labels, 8, order))
    assert counts(step) == counts(twin) == [6] * 4


def test_steps_of_a_bad_epoch_reported_at_once(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    images, labels, order = data(device)
    step = a_step(device)
    step.epoch(images, labels, 8, order)
    monkeypatch.setattr(_dispatch, "check_at_once", True)
    order[3] = 23
    with pytest.raises(IndexError, match="index 23 is out of range of the data"):
        step.epoch(images, labels, 8, order)
    assert counts(step) == [3] * 4


def test_counts_loaded_after_a_bad_epoch_stay(device: str) -> None:
    images, labels, order = data(device)
    step = a_step(device)
    step.epoch(images, labels, 8, order)
    saved = copy.deepcopy(step.optimizer.state_dict())
    step.epoch(images, labels + 5, 8, order)
    step.optimizer.load_state_dict(saved)
    wait(device)
    with pytest.raises(IndexError, match="is out of bounds"):
        step.epoch(images, labels, 8, order)
    assert counts(step) == [3] * 4
    step.epoch(images, labels, 8, order)
    assert counts(step) == [6] * 4
