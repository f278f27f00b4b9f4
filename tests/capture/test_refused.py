"""What a recording cannot hold runs eagerly, with the reason."""

from __future__ import annotations

import re
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

import fastnn
from twins import batch, classify, net, same


def _item(x: torch.Tensor) -> Any:
    return x * x.sum().item()


def _control_flow(x: torch.Tensor) -> Any:
    return x * 2 if x.sum() > 0 else x


def _mask(x: torch.Tensor) -> Any:
    return x[x > 0]


def _nonzero(x: torch.Tensor) -> Any:
    return x.nonzero()


def _graph(x: torch.Tensor) -> Any:
    return _weight * x


def _leaf(x: torch.Tensor) -> Any:
    x = x.detach().requires_grad_()
    x.square().sum().backward()
    return x, x.grad


def _another_leaf(x: torch.Tensor) -> Any:
    return x * 2, _weight.detach().requires_grad_()


def _sparse(x: torch.Tensor) -> Any:
    return torch.sparse.mm(x.outer(x).to_sparse(), x[:, None])


def _resized(x: torch.Tensor) -> Any:
    return torch.zeros(3).resize_(2)


def _repeat(captured: Any) -> None:
    for _ in range(5):
        captured(torch.randn(4))


_weight = torch.ones(4, requires_grad=True)


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (_item, "item"),
        (_control_flow, "control flow"),
        (_mask, "mask"),
        (_nonzero, "depends on values"),
        (_graph, r"return loss\.detach\(\)"),
        (_leaf, "requires a gradient"),
        (_another_leaf, "requires a gradient"),
        (_sparse, "layout"),
        (_resized, "memory"),
    ],
)
def test_what_cannot_be_replayed_is_refused(fn: Any, reason: str) -> None:
    captured = fastnn.capture(fn)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(4):
            x = torch.randn(4)
            same(captured(x), fn(x))
    assert [w.category for w in told] == [fastnn.EagerStepWarning]
    assert told[0].filename == __file__
    assert re.search(reason, str(told[0].message))
    assert captured.programs == ()
    demanding = fastnn.capture(fn, native=True)
    with pytest.raises(RuntimeError, match=reason):
        _repeat(demanding)


@pytest.mark.parametrize(
    "argument",
    [
        {1: {2, 3}},
        torch.ones(2, dtype=torch.int32),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, requires_grad=True) * 2,
    ],
    ids=["set", "int32", "sparse", "meta", "graph"],
)
def test_arguments_that_cannot_be_held_are_refused(argument: Any) -> None:
    captured = fastnn.capture(lambda x: x)
    with pytest.warns(fastnn.EagerStepWarning, match="an argument"):
        assert captured(argument) is argument


def test_closures_of_optimizers() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters())
    x, y = batch()

    def step() -> torch.Tensor:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        return optimizer.step(closure).detach()

    captured = fastnn.capture(step)
    with pytest.warns(fastnn.EagerStepWarning, match="LBFGS"):
        losses = [captured().item() for _ in range(3)]
    assert losses[-1] < losses[0]


def test_gradients_in_one_tensor() -> None:
    model = net()
    block = torch.zeros(sum(p.numel() for p in model.parameters()))
    parts = block.split([p.numel() for p in model.parameters()])
    for p, part in zip(model.parameters(), parts, strict=True):
        p.grad = part.view_as(p)
    x, y = batch()

    @fastnn.capture
    def accumulate() -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    with pytest.warns(
        fastnn.EagerStepWarning, match="gradients of several parameters are parts of one tensor"
    ):
        losses = [accumulate() for _ in range(4)]
    assert len(set(map(float, losses))) == 1
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    torch.testing.assert_close(block, 4 * torch.cat([g.flatten() for g in expected]))


class _Wrapper(torch.optim.Optimizer):
    """An optimizer that delegates the update to another one, as Lookahead or ZeroRedundancyOptimizer do."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure: None = None) -> None:
        self.inner.step()


def test_optimizers_around_others() -> None:
    models = [net(), net()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [_Wrapper(torch.optim.Adam(model.parameters())) for model in models]
    x, y = batch()

    def update(which: int) -> torch.Tensor:
        optimizers[which].zero_grad()
        loss = nn.functional.cross_entropy(models[which](x), y)
        loss.backward()
        optimizers[which].step()
        return loss.detach()

    captured = fastnn.capture(lambda: update(0))
    with pytest.warns(
        fastnn.EagerStepWarning, match=r"_Wrapper\.step takes a step of another optimizer, Adam"
    ):
        losses = [captured() for _ in range(5)]
    assert losses == [update(1) for _ in range(5)]
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


_SCHEDULERS: dict[str, tuple[Any, ...]] = {  # the constructor, and the arguments of its step
    "StepLR": (lambda o: schedulers.StepLR(o, 1, 0.5),),
    "LambdaLR": (lambda o: schedulers.LambdaLR(o, lambda epoch: 0.5**epoch),),
    "CosineAnnealingWarmRestarts": (lambda o: schedulers.CosineAnnealingWarmRestarts(o, 9),),
    "ReduceLROnPlateau": (lambda o: schedulers.ReduceLROnPlateau(o, patience=0), 1.0),
    "ExponentialLR": (lambda o: schedulers.ChainedScheduler([schedulers.ExponentialLR(o, 0.5)]),),
    "SequentialLR": (
        lambda o: schedulers.SequentialLR(o, [schedulers.StepLR(o, 1), schedulers.StepLR(o, 1)], [2]),
    ),
}


class _Scheduled:
    def __init__(self) -> None:
        self.model = net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.parts: list[list[Any]] = [[]]

    def update(self, x: torch.Tensor, y: torch.Tensor, updates: bool, *given: Any) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        if updates:
            self.optimizer.step()
        for scheduler in self.parts[0]:
            scheduler.step(*given)
        return loss.detach()


@pytest.mark.parametrize("first", [0, 1], ids=["at_first", "late"])
@pytest.mark.parametrize("updates", [True, False], ids=["with_optimizer", "alone"])
@pytest.mark.parametrize("name", _SCHEDULERS)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step:UserWarning")
def test_schedulers_of_learning_rates(name: str, updates: bool, first: int) -> None:
    """Their Python would not run in a replay, and the rate would not change."""
    make, *given = _SCHEDULERS[name]
    plain, recorded = _Scheduled(), _Scheduled()
    captured = fastnn.capture(recorded.update)
    for call in range(6):
        if call == first:
            for scheduled in (plain, recorded):
                scheduled.parts[0].append(make(scheduled.optimizer))
        plain.update(*batch(), updates, *given)
        if call == first:
            with pytest.warns(fastnn.EagerStepWarning, match=rf"it calls {name}\.step"):
                captured(*batch(), updates, *given)
        else:
            captured(*batch(), updates, *given)
    assert recorded.optimizer.param_groups[0]["lr"] == plain.optimizer.param_groups[0]["lr"] < 0.1
    assert captured.programs == ()


def test_schedulers_that_another_thread_steps() -> None:
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    scheduler = schedulers.StepLR(optimizer, 1)
    optimizer.step()  # torch warns if it does not precede the scheduler's

    def double(x: torch.Tensor) -> torch.Tensor:
        thread = threading.Thread(target=scheduler.step)
        thread.start()
        thread.join()
        return x * 2

    captured = fastnn.capture(double, native=True)
    for _ in range(4):
        captured(torch.ones(3))
    assert len(captured.programs) == 1
    assert "__setattr__" not in vars(schedulers.LRScheduler)  # torch's class is restored


def test_under_other_modes_it_runs_as_written() -> None:
    model = net()
    captured = fastnn.capture(lambda x: model(x).detach())
    x = torch.randn(4, 8)
    for _ in range(4):
        captured(x)
    with fastnn.disabled():
        same(captured(x), model(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert captured(x).dtype is torch.bfloat16
    same(torch.func.vmap(captured)(x[:, None]), model(x)[:, None])
    outer = fastnn.capture(lambda x: captured(x) * 2)
    for _ in range(4):
        same(outer(x), model(x) * 2)
    assert len(outer.programs) == 1


def test_errors_of_the_function_propagate() -> None:
    model = net()
    step = fastnn.capture(classify(model, torch.optim.Adam(model.parameters())))
    with pytest.raises(RuntimeError, match="shapes"):
        step(torch.randn(4, 9), torch.zeros(4, dtype=torch.int64))
    for _ in range(4):
        step(*batch())
    before = [p.detach().clone() for p in model.parameters()]
    x, y = batch()
    y[3] = 7
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        step(x, y)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    step(*batch())
    assert len(step.programs) == 1


def test_several_threads_share_a_program() -> None:
    """Concurrent calls do not share a program's memory."""
    model = nn.Linear(64, 64)
    run = fastnn.capture(lambda x: model(x).tanh().detach())
    for _ in range(4):
        run(torch.randn(512, 64))
    wrong: list[int] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(50):
            x = torch.randn(512, 64, generator=generator)
            if not torch.allclose(run(x), model(x).tanh(), atol=1e-4):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_the_self_check_is_for() -> None:
    """Data that does not come from torch's ops is frozen in a recording: the check finds it."""
    data = iter(np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32))

    def stale(x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_numpy(next(data))

    captured = fastnn.capture(stale)
    with pytest.warns(fastnn.EagerStepWarning, match="self-check found a difference"):
        _repeat(captured)
    assert captured.programs == ()


def test_side_effects_happen_at_recording_only() -> None:
    calls = []
    captured = fastnn.capture(lambda x: (calls.append(1), x + 1)[1])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(10):
            captured(torch.ones(2))
    assert ["changes the length of calls while it runs" in str(each.message) for each in told] == [True]
    assert len(calls) == 3  # eager, recorded, compared


def test_an_assertion_is_made_in_replays_too() -> None:
    def fn(x: torch.Tensor) -> Any:
        torch._assert_async(x.isfinite().all())
        return x * 2

    captured = fastnn.capture(fn, native=True)
    for _ in range(5):
        captured(torch.ones(3))
    with pytest.raises(RuntimeError, match="nonzero"):
        captured(torch.full((3,), torch.inf))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_a_traced_module_says_that_its_parts_are_not_watched() -> None:
    traced = torch.jit.trace(nn.Linear(4, 4), torch.ones(2, 4))  # type: ignore[no-untyped-call]
    with pytest.warns(fastnn.EagerStepWarning, match="keeps its parts where they are not watched"):
        _repeat(fastnn.capture(lambda x: traced(x).detach()))


def _averaged(x: torch.Tensor) -> Any:
    _average.update_parameters(_linear)
    return x * 2


_linear = nn.Linear(4, 4)
_average = torch.optim.swa_utils.AveragedModel(_linear)
_cumulative = nn.BatchNorm1d(4, momentum=None)


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (_averaged, "AveragedModel.update_parameters"),
        (lambda x: _cumulative(x.expand(3, 4)).detach(), "BatchNorm1d.forward"),
        (
            lambda x: nn.utils.clip_grad_norm_(_linear.parameters(), 1.0, error_if_nonfinite=True),
            "clip_grad_norm_",
        ),
        (lambda x: nn.functional.one_hot(x.long().abs(), 5), "one_hot"),
        (lambda x: torch.zeros(4)[x[0].long().abs()], "__getitem__"),
    ],
    ids=["average", "batch norm", "clip", "one_hot", "index"],
)
def test_what_torch_itself_reads(fn: Any, name: str) -> None:
    _linear.requires_grad_()
    for p in _linear.parameters():
        p.grad = torch.ones_like(p)
    with pytest.warns(
        fastnn.EagerStepWarning, match=rf"{re.escape(name)} of torch reads a value.*\(test_refused\.py:\d+\)"
    ):
        _repeat(fastnn.capture(fn))
