"""`TrainStep.epoch` on the CPU: many steps a native call, bit by bit the steps of a loop."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from fastnn import _backend, _epoch
from train_steps import OPTIMIZERS, chain

pytestmark = pytest.mark.skipif(_backend.cpu is None, reason="needs the compiled module")


def assert_same_state(step: fastnn.TrainStep, twin: fastnn.TrainStep) -> None:
    """Bit by bit: parameters, gradients and all that the optimizers keep."""
    for p, q in zip(step.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(p, q)
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert torch.equal(p.grad, q.grad)
        ours, theirs = step.optimizer.state[p], twin.optimizer.state[q]
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            same = torch.equal(ours[key], value) if isinstance(value, Tensor) else ours[key] == value
            assert same, key


def loop(
    step: fastnn.TrainStep,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    order: Tensor,
    rates: list[float] | None = None,
) -> Tensor:
    losses = []
    for number, rows in enumerate(order.split(batch_size)):
        if rates is not None:
            for group in step.optimizer.param_groups:
                group["lr"] = rates[number]
        losses.append(step(images[rows], labels[rows]))
    return torch.stack(losses)


def native_calls(step: fastnn.TrainStep, *arguments: Any, **options: Any) -> tuple[Tensor, int]:
    """The losses of an epoch whose steps must all be native, and the number of calls it took."""
    seen = fastnn.explain(step.epoch, *arguments, **options)
    assert set(seen.decisions) == {("train_epoch", None)}
    return seen.result, len(seen.decisions)


def step_by_step(step: fastnn.TrainStep, *arguments: Any, **options: Any) -> tuple[Tensor, str]:
    """The losses of an epoch that is left to the loop, and why."""
    seen = fastnn.explain(step.epoch, *arguments, **options)
    (reason,) = (d.reason for d in seen.decisions if d.op == "train_epoch")
    assert reason is not None
    return seen.result, reason


def a_step(
    optimizer: str = "adam",
    loss: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> fastnn.TrainStep:
    model = nn.Sequential(nn.Flatten(), *chain([12, 8, 5], dtype=dtype))
    options = {"mean": 0.3, "std": 0.5, **options}
    return fastnn.TrainStep(
        model, loss or nn.CrossEntropyLoss(), OPTIMIZERS[optimizer](model.parameters()), **options
    )


def data(n: int = 23) -> tuple[Tensor, Tensor]:
    return torch.randint(256, (n, 3, 4), dtype=torch.uint8), torch.randint(5, (n,))


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
    twin = copy.deepcopy(step)
    own = [group["lr"] for group in step.optimizer.param_groups]
    version = step.model[1].weight._version
    for _ in range(2):
        order = torch.randperm(23)
        rates = [0.02, 0.0, 1e-3, 0.01, 0.005] if with_rates else None
        losses, calls = native_calls(step, images, labels, 5, order, lr=rates)
        assert calls == 2, "four batches of 5, one of 3"
        assert torch.equal(losses, loop(twin, images, labels, 5, order, rates))
        assert_same_state(step, twin)
    assert [group["lr"] for group in step.optimizer.param_groups] == own
    assert step.model[1].weight._version > version


@pytest.mark.parametrize("features", [1, 15, 16, 17, 64, 200])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_rows_of_any_width(isa: str, features: int, dtype: torch.dtype) -> None:
    model = chain([features, 9, 3], dtype=torch.float64 if dtype is torch.float64 else torch.float32)
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"](model.parameters()))
    twin = copy.deepcopy(step)
    images = torch.randint(256, (70, features)).to(dtype)
    labels = torch.randint(3, (70,), dtype=torch.uint8 if features == 17 else torch.int64)
    order = torch.randperm(70)
    losses, _ = native_calls(step, images, labels, 32, order)
    assert torch.equal(losses, loop(twin, images, labels, 32, order))
    assert_same_state(step, twin)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (nn.MSELoss(), torch.randn(23, 5)),
        (nn.MSELoss(reduction="sum"), torch.randn(23, 5)),
        (nn.CrossEntropyLoss(ignore_index=2, label_smoothing=0.1), torch.randint(5, (23,))),
        (nn.CrossEntropyLoss(torch.rand(5)), torch.randint(5, (23,))),
        (nn.CrossEntropyLoss(reduction="sum"), torch.randint(5, (23,))),
    ],
    ids=["mse", "mse-sum", "ignored-smooth", "weighted", "sum"],
)
def test_every_loss(loss: nn.Module, labels: Tensor) -> None:
    images, _ = data()
    step = a_step(loss=loss)
    twin = copy.deepcopy(step)
    order = torch.randperm(23)
    losses, _ = native_calls(step, images, labels, 6, order)
    assert torch.equal(losses, loop(twin, images, labels, 6, order))
    assert_same_state(step, twin)


def test_a_vector_of_targets() -> None:
    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = chain([6, 7, 1], dtype=torch.float32)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).squeeze(-1)

    model = Regression()
    step = fastnn.TrainStep(model, nn.MSELoss(), OPTIMIZERS["sgd"](model.parameters()))
    twin = copy.deepcopy(step)
    x, y, order = torch.randn(20, 6), torch.randn(20), torch.randperm(20)
    losses, _ = native_calls(step, x, y, 4, order)
    assert torch.equal(losses, loop(twin, x, y, 4, order))
    assert_same_state(step, twin)


def test_some_rows_again_and_others_not_at_all() -> None:
    images, labels = data()
    labels[7] = 99  # never looked at
    step = a_step()
    twin = copy.deepcopy(step)
    order = torch.tensor([3, 3, 22, 0, 5, 1, 1, 1, 20])
    losses, _ = native_calls(step, images, labels, 4, order)
    assert torch.equal(losses, loop(twin, images, labels, 4, order))
    assert_same_state(step, twin)
    more = torch.arange(46) % 23
    labels[7] = 0
    assert len(step.epoch(images, labels, 4, more[::2])) == 6, "strided"
    assert len(step.epoch(images, labels, 4, more)) == 12, "more than there are images"


def test_rows_with_a_pitch() -> None:
    """Rows of a wider matrix; where the columns are contiguous it is left to the loop."""
    wide, labels, order = torch.randn(23, 20), torch.randint(5, (23,)), torch.randperm(23)
    step = a_step()
    ours, twin = copy.deepcopy(step), copy.deepcopy(step)
    losses, calls = native_calls(ours, wide[:, 3:15], labels, 5, order)
    assert calls == 2
    assert torch.equal(losses, loop(twin, wide[:, 3:15], labels, 5, order))
    assert_same_state(ours, twin)
    turned = wide.t().contiguous().t()[:, 3:15]
    twin = copy.deepcopy(step)
    losses, reason = step_by_step(step, turned, labels, 5, order)
    assert reason == "the rows of the images are not contiguous"
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
    step = a_step(loss=loss)
    twin = copy.deepcopy(step)
    order = torch.randperm(23)
    losses, calls = native_calls(step, images, labels, 5, order)
    assert calls == 2
    assert torch.equal(losses, loop(twin, images, labels, 5, order))
    assert_same_state(step, twin)


def test_targets_whose_rows_are_not_contiguous() -> None:
    images, _ = data()
    labels = torch.randn(5, 23).t()
    step = a_step(loss=nn.MSELoss())
    twin = copy.deepcopy(step)
    losses, reason = step_by_step(step, images, labels, 5, torch.arange(23))
    assert reason == "the rows of the targets are not contiguous"
    assert torch.equal(losses, loop(twin, images, labels, 5, torch.arange(23)))


def test_parameters_that_are_not_as_far() -> None:
    """Their steps meet: 5 of one is at the rate of one step, 5 of the other at that of the next."""
    images, labels = data()
    step = a_step()
    first, *_, last = step.model.parameters()
    step(images, labels)
    step.optimizer.state[first]["step"] += 1
    step.optimizer.state[last]["step"] += 2
    twin = copy.deepcopy(step)
    order, rates = torch.randperm(20), [0.1, 0.01, 0.001, 0.0001]
    losses, _ = native_calls(step, images, labels, 5, order, lr=rates)
    assert torch.equal(losses, loop(twin, images, labels, 5, order, rates))
    assert_same_state(step, twin)


def test_groups() -> None:
    images, labels = data()
    model = chain([12, 8, 5], dtype=torch.float32)
    groups = [{"params": model[0].parameters(), "weight_decay": 0.1}, {"params": model[2].parameters()}]
    step = fastnn.TrainStep(
        nn.Sequential(nn.Flatten(), model), nn.CrossEntropyLoss(), torch.optim.AdamW(groups)
    )
    twin = copy.deepcopy(step)
    order, rates = torch.randperm(23), [0.1, 0.02, 0.01]
    losses, _ = native_calls(step, images, labels, 8, order, lr=rates)
    assert torch.equal(losses, loop(twin, images, labels, 8, order, rates))
    assert_same_state(step, twin)
    assert [group["lr"] for group in step.optimizer.param_groups] == [1e-3, 1e-3]


@pytest.mark.parametrize("limit", ["_CALL_STEPS", "_CALL_WORK"])
def test_long_epochs_are_several_calls(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = data()
    step = a_step()
    twin = copy.deepcopy(step)
    work_of_a_step = (2 + _epoch._UPDATE_WORK) * (12 * 8 + 8 * 5)
    monkeypatch.setattr(_epoch, limit, {"_CALL_STEPS": 3, "_CALL_WORK": 4 * work_of_a_step - 1}[limit])
    order = torch.randperm(23)
    losses, calls = native_calls(step, images, labels, 2, order)
    assert calls == 5, "3, 3, 3 and 2 batches of 2, one of 1"
    assert torch.equal(losses, loop(twin, images, labels, 2, order))
    assert_same_state(step, twin)


@pytest.mark.parametrize("work", [0, 1])
def test_at_least_one_step_a_call(work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_epoch, "_CALL_WORK", work)
    assert native_calls(a_step(), *data(), 5)[1] == 5


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


def _spoil_label(labels: Tensor, order: Tensor) -> None:
    labels[order[13]] = 5


def _spoil_row(labels: Tensor, order: Tensor) -> None:
    order[13] = 23


def _spoil_row_below(labels: Tensor, order: Tensor) -> None:
    order[13] = -1


@pytest.mark.parametrize("spoil", [_spoil_label, _spoil_row, _spoil_row_below])
@pytest.mark.parametrize("batch_size", [4, 15])
def test_a_bad_index_ends_the_epoch(spoil: Callable[[Tensor, Tensor], None], batch_size: int) -> None:
    """The steps before it have been taken, and no more. Around the data there are others that would do."""
    images, labels = (t[1:24] for t in data(25))
    order = torch.randperm(23)
    step = a_step()
    step(images, labels)
    twin = copy.deepcopy(step)
    before = order[: 13 // batch_size * batch_size].clone()
    spoil(labels, order)
    with pytest.raises(IndexError, match=r"out of (range|bounds)"):
        step.epoch(images, labels, batch_size, order)
    if len(before):
        loop(twin, images, labels, batch_size, before)
    assert_same_state(step, twin)


def test_a_bad_first_batch_leaves_nothing_behind() -> None:
    images, labels = data()
    step = a_step()
    decisions: list[_backend.Decision] = []
    for bad_labels, order in ((labels, torch.tensor([3, 23])), (labels + 5, torch.arange(23))):
        with _backend.recording(decisions.append), pytest.raises(IndexError):
            step.epoch(images, bad_labels, 8, order)
    assert decisions == []
    assert not step.optimizer.state
    assert not getattr(step.optimizer, "_opt_called", False)


def test_the_bad_entry_is_named() -> None:
    images, labels = data()
    order = torch.arange(23)
    order[13] = -3
    with pytest.raises(
        IndexError, match=r"permutation has the entry -3 in step 3, out of range for 23 images"
    ):
        a_step().epoch(images, labels, 4, order)


class Interrupted(Exception):
    """What a signal's handler raises."""


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Calls something in the midst of whatever comes."""
    before = signal.getsignal(signal.SIGALRM)

    def soon(call: Callable[[], None]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: call())
        signal.setitimer(signal.ITIMER_REAL, 0.02)

    yield soon
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def a_long_epoch() -> tuple[fastnn.TrainStep, Tensor, Tensor, Tensor]:
    """Some tenths of a second."""
    images, labels = data()
    return a_step(), images, labels, torch.randint(23, (60000,))


def test_interrupted(alarm: Callable[[Callable[[], None]], None]) -> None:
    """What the step has written counts as written for autograd, and the optimizer's rate is its own."""
    step, images, labels, order = a_long_epoch()
    step(images, labels)
    weight = step.model[1].weight
    kept = (weight * weight).sum()  # saves the weight

    def interrupt() -> None:
        raise Interrupted

    alarm(interrupt)
    with pytest.raises(Interrupted):
        step.epoch(images, labels, 1, order, lr=torch.full((60000,), 1e-4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()
    assert step.optimizer.param_groups[0]["lr"] == 1e-2
    taken = {float(state["step"]) for state in step.optimizer.state.values()}
    assert len(taken) == 1
    assert 1 < taken.pop() < 60001


def test_a_step_amid_an_epoch(alarm: Callable[[Callable[[], None]], None]) -> None:
    step, images, labels, order = a_long_epoch()
    more: list[Tensor] = []
    alarm(lambda: more.append(step(images, labels)))
    losses = step.epoch(images, labels, 3, order)
    assert len(losses) == 20000
    assert len(more) == 1
    assert {float(state["step"]) for state in step.optimizer.state.values()} == {20001}


def test_disabled() -> None:
    images, labels = data()
    with fastnn.disabled():
        seen = fastnn.explain(a_step().epoch, images, labels, 12)
    reasons = {d.reason for d in seen.decisions if d.op in ("train_epoch", "train_step")}
    assert reasons == {"fastnn is disabled"}


def test_on_a_device_without_kernels() -> None:
    model = chain([12, 5], dtype=torch.float32).to("meta")
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    images, labels = torch.empty(7, 12, device="meta"), torch.empty(7, dtype=torch.int64, device="meta")
    assert step(images, labels).is_meta
    assert step.epoch(images, labels, 3, torch.empty(7, dtype=torch.int64, device="meta")).shape == (3,)


def test_hooks_leave_it_to_the_loop() -> None:
    images, labels = data()
    step = a_step()
    twin = copy.deepcopy(step)
    seen: list[float] = []
    step.optimizer.register_step_post_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    order, rates = torch.randperm(23), [0.1, 0.02, 0.01]
    losses = step.epoch(images, labels, 8, order, lr=torch.tensor(rates, dtype=torch.float64))
    assert seen == rates
    assert step.optimizer.param_groups[0]["lr"] == twin.optimizer.param_groups[0]["lr"]
    torch.testing.assert_close(losses, loop(twin, images, labels, 8, order, rates), rtol=1e-5, atol=1e-5)


def test_a_scheduler_in_a_hook_is_not_undone() -> None:
    images, labels = data()
    step = a_step()

    def halve(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        optimizer.param_groups[0]["lr"] /= 2

    step.optimizer.register_step_post_hook(halve)
    step.epoch(images, labels, 8)
    assert step.optimizer.param_groups[0]["lr"] == 1e-2 / 8


def _add_group(step: fastnn.TrainStep) -> None:
    step.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.3})


def _load(step: fastnn.TrainStep) -> None:
    step.optimizer.load_state_dict(step.optimizer.state_dict())


@pytest.mark.parametrize("change", [_add_group, _load])
def test_a_hook_that_changes_the_groups(change: Callable[[fastnn.TrainStep], None]) -> None:
    """Those that there were have their rate again; what the hook has put in their place stays."""
    images, labels = data()
    step = a_step()
    first = step.optimizer.param_groups[0]
    handle = step.optimizer.register_step_post_hook(lambda *_: (handle.remove(), change(step))[0])
    step.epoch(images, labels, 8, lr=[0.1, 0.02, 0.3])
    assert first["lr"] == 1e-2
    assert [group["lr"] for group in step.optimizer.param_groups[1:]] in ([], [0.3])


def test_rates_are_given_back_after_an_error() -> None:
    images, labels = data()
    labels[20] = 9
    step = a_step()
    step.optimizer.register_step_post_hook(lambda *_: None)
    with pytest.raises(IndexError):
        step.epoch(images, labels, 8, torch.arange(23), lr=[0.1, 0.02, 0.3])
    assert step.optimizer.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize(
    ("lr", "error", "words"),
    [
        ([10**400, 0.1, 0.1], TypeError, "lr must hold a number for each step"),
        (torch.ones(3, dtype=torch.complex64), TypeError, "lr must hold a number for each step"),
        ([0.1, 0.2], ValueError, r"lr has shape \(2,\), expected one entry for each of the 3 steps"),
        (0.1, ValueError, r"lr has shape \(\)"),
        ([0.1, -0.1, 0.1], ValueError, "lr must be at least 0, got -0.1"),
        ([0.1, float("nan"), 0.1], ValueError, "lr must be at least 0, got nan"),
        ("abc", TypeError, "lr must hold a number for each step, got str"),
        ([0.1, None, 0.1], TypeError, "lr must hold a number for each step, got list"),
    ],
)
def test_bad_rates(lr: Any, error: type[Exception], words: str) -> None:
    step = a_step()
    twin = copy.deepcopy(step)
    with pytest.raises(error, match=words):
        step.epoch(*data(), 8, lr=lr)
    assert_same_state(step, twin)


def test_rates_of_numpy() -> None:
    step = a_step()
    twin = copy.deepcopy(step)
    images, labels = data()
    order = torch.randperm(23)
    rates = [0.1, 0.02, 0.01]
    losses, _ = native_calls(
        step, images, labels, 8, order, lr=torch.tensor(rates, dtype=torch.float64).numpy()
    )
    assert torch.equal(losses, loop(twin, images, labels, 8, order, rates))
    assert_same_state(step, twin)
