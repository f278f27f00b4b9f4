"""SGD, Adagrad and RMSprop next to torch's: checkpoints, schedulers, hooks, errors."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from fastnn import _dispatch, optim

needs_native = pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")
Options = dict[str, Any]

PAIRS: list[tuple[Any, Any]] = [
    (optim.SGD, torch.optim.SGD),
    (optim.Adagrad, torch.optim.Adagrad),
    (optim.RMSprop, torch.optim.RMSprop),
]
RICH: dict[Any, Options] = {
    optim.SGD: {"momentum": 0.9, "weight_decay": 0.02, "nesterov": True},
    optim.Adagrad: {"lr_decay": 0.1, "weight_decay": 0.02, "initial_accumulator_value": 0.1},
    optim.RMSprop: {"momentum": 0.5, "centered": True, "weight_decay": 0.02, "eps": 1e-2},
}
every_pair = pytest.mark.parametrize(("cls", "reference"), PAIRS)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2)).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    dtype = next(model.parameters()).dtype
    for i in range(start, start + steps):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(8, 5, generator=generator).to(dtype)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def assert_close(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        # Float32 roundings of some tens of steps.
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file)
    return loaded


FLAGS: list[Options] = [{}, {"foreach": True}, {"fused": True}]
STATE_CHOICES = [
    (cls, reference, {**base, **flags})
    for cls, reference in PAIRS
    for base in ({}, RICH[cls])
    for flags in FLAGS
    if cls is not optim.RMSprop or "fused" not in flags
]


@pytest.mark.parametrize(("cls", "reference", "options"), STATE_CHOICES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_state_dict_and_repr(cls: Any, reference: Any, options: Options, dtype: torch.dtype) -> None:
    model, twin = network(dtype), network(dtype)
    mine, theirs = cls(model.parameters(), **options), reference(twin.parameters(), **options)
    train(model, mine, 2)
    train(twin, theirs, 2)
    assert repr(mine) == repr(theirs)
    assert isinstance(mine, reference)
    a, b = mine.state_dict(), theirs.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for index, expected in b["state"].items():
        assert list(a["state"][index]) == list(expected)
        for key, value in expected.items():
            ours = a["state"][index][key]
            assert (ours.dtype, ours.shape, ours.stride()) == (value.dtype, value.shape, value.stride())


@every_pair
@pytest.mark.parametrize("swap", [False, True])
def test_checkpoints_pass_both_ways(cls: Any, reference: Any, swap: bool) -> None:
    first, second = (reference, cls) if swap else (cls, reference)
    model, unbroken = network(), network()
    options = {"lr": 0.01, **RICH[cls]}
    train(unbroken, reference(unbroken.parameters(), **options), 30)
    before = first(model.parameters(), **options)
    train(model, before, 15)
    resumed = network()
    resumed.load_state_dict(model.state_dict())
    after = second(resumed.parameters(), lr=9.0)
    after.load_state_dict(through_file(before.state_dict()))
    train(resumed, after, 15, start=15)
    assert_close(resumed, unbroken)


@every_pair
@pytest.mark.parametrize("how", ["file", "deepcopy", "pickle"])
def test_resumes_exactly(cls: Any, reference: Any, how: str) -> None:
    model, unbroken = network(), network()
    train(unbroken, cls(unbroken.parameters(), **RICH[cls]), 12)
    optimizer = cls(model.parameters(), **RICH[cls])
    train(model, optimizer, 6)
    if how == "file":
        fresh = cls(model.parameters())
        fresh.load_state_dict(through_file(optimizer.state_dict()))
        optimizer = fresh
    else:
        pair = (model, optimizer)
        model, optimizer = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert type(optimizer) is cls
    train(model, optimizer, 6, start=6)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), unbroken.parameters(), strict=True))


@needs_native
def test_sgd_takes_a_momentum_buffer_of_none_for_missing() -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    for cls, parameter in ((optim.SGD, p), (torch.optim.SGD, q)):
        optimizer = cls([parameter], lr=0.1, momentum=0.9, dampening=0.5)
        optimizer.state[parameter]["momentum_buffer"] = None
        for _ in range(2):
            parameter.grad = torch.arange(3.0)
            optimizer.step()
    torch.testing.assert_close(p, q)


@needs_native
def test_sgd_makes_no_buffer_for_a_group_that_is_left_to_torch() -> None:
    memory = torch.randn(6)
    params = [nn.Parameter(memory), nn.Parameter(memory[2:])]
    optimizer = optim.SGD(params, momentum=0.9)
    for p in params:
        p.grad = torch.ones_like(p)
    assert isinstance(
        _dispatch.cpu.sgd_step(optimizer.param_groups[0], optimizer.state, lambda *_: None), str
    )
    assert not any(optimizer.state[p] for p in params)


@needs_native
def test_sgd_whose_momentum_comes_later() -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    mine, theirs = optim.SGD([p], lr=0.1), torch.optim.SGD([q], lr=0.1)
    for momentum in (0, 0.5, 0.5, 0, 0.9):
        for optimizer, parameter in ((mine, p), (theirs, q)):
            optimizer.param_groups[0]["momentum"] = momentum
            parameter.grad = torch.arange(1.0, 4.0)
            optimizer.step()
        torch.testing.assert_close(p, q)
        assert mine.state[p].keys() == theirs.state[q].keys()


@needs_native
def test_state_that_is_dropped_begins_anew() -> None:
    for cls, reference in PAIRS:
        p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        for optimizer, parameter in ((cls([p]), p), (reference([q]), q)):
            for _ in range(2):
                parameter.grad = torch.arange(1.0, 4.0)
                optimizer.step()
                optimizer.state.pop(parameter, None)
        torch.testing.assert_close(p, q)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=25, cycle_momentum=False),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
}


@pytest.mark.filterwarnings("error")  # a scheduler warns where it does not see the optimizer's steps
@every_pair
@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_schedulers(cls: Any, reference: Any, schedule: str, tensor_lr: bool) -> None:
    models = network(), network()
    for model, make in zip(models, (cls, reference), strict=True):
        lr: Any = torch.tensor(0.01) if tensor_lr else 0.01
        optimizer = make(model.parameters(), lr=lr, **RICH[cls])
        scheduler = SCHEDULERS[schedule](optimizer)
        for step in range(20):
            train(model, optimizer, 1, start=step)
            scheduler.step()
    assert_close(*models)


@pytest.mark.filterwarnings("error")
def test_sgd_under_cyclic_momentum() -> None:
    models = network(), network()
    for model, cls in zip(models, (optim.SGD, torch.optim.SGD), strict=True):
        optimizer = cls(model.parameters(), lr=0.01, momentum=0.9)
        scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=25)
        for step in range(20):
            train(model, optimizer, 1, start=step)
            scheduler.step()
    assert_close(*models)


@every_pair
def test_closure_runs_with_grad_and_its_loss_comes_back(cls: Any, reference: Any) -> None:
    losses = []
    for make in (cls, reference):
        net = network()
        optimizer = make(net.parameters(), lr=0.01)

        def closure(net: nn.Module = net, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = net(torch.ones(4, 5)).square().mean()
            loss.backward()
            return loss

        with torch.no_grad():
            losses.append([optimizer.step(closure).item() for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@every_pair
def test_step_hooks_and_profiler(cls: Any, reference: Any) -> None:
    model = network()
    optimizer = cls(model.parameters())
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, 2)
    assert calls == ["pre", "post"] * 2
    assert f"Optimizer.step#{cls.__name__}.step" in {event.name for event in profile.events()}


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad", "RMSprop"])
@pytest.mark.parametrize("extra", [{}, {"state_dtype": torch.float32}, {"master_weights": True}], ids=str)
@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_steps_inside_torch_compile(name: str, extra: Options) -> None:
    torch.compiler.reset()
    model, twin = network(), network()
    mine = getattr(optim, name)(model.parameters(), lr=0.1, **extra)
    theirs = getattr(torch.optim, name)(twin.parameters(), lr=0.1)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    compiled = torch.compile(lambda: mine.step(), backend="eager")
    for _ in range(2):
        compiled()
        theirs.step()
    assert_close(model, twin)


BAD: list[Options] = [
    {"lr": -1.0},
    {"eps": -1.0},
    {"momentum": -1.0},
    {"weight_decay": -1.0},
    {"alpha": -1.0},
    {"lr_decay": -1.0},
    {"initial_accumulator_value": -1.0},
    {"nesterov": True},
    {"lr": torch.tensor([1.0, 2.0])},
    {"fused": True, "foreach": True},
]


@every_pair
@pytest.mark.parametrize("options", BAD, ids=str)
def test_refuses_what_torch_refuses(cls: Any, reference: Any, options: Options) -> None:
    with pytest.raises((ValueError, RuntimeError, TypeError)) as expected:
        reference([nn.Parameter(torch.ones(1))], **options)
    with pytest.raises(type(expected.value)) as raised:
        cls([nn.Parameter(torch.ones(1))], **options)
    assert str(raised.value) == str(expected.value)


def _sparse(optimizer: Any, p: nn.Parameter) -> None:
    p.grad = torch.ones(3).to_sparse()


def _sparse_and_decay(optimizer: Any, p: nn.Parameter) -> None:
    p.grad = torch.ones(3).to_sparse()
    optimizer.param_groups[0]["weight_decay"] = 0.1


def _centered_later(optimizer: Any, p: nn.Parameter) -> None:
    optimizer.param_groups[0]["centered"] = True


def _momentum_later(optimizer: Any, p: nn.Parameter) -> None:
    optimizer.param_groups[0]["momentum"] = 0.9


def _capturable(optimizer: Any, p: nn.Parameter) -> None:
    optimizer.param_groups[0]["capturable"] = True


@pytest.mark.parametrize(
    ("pair", "spoil"),
    [
        (1, _sparse_and_decay),
        (2, _sparse),
        (2, _centered_later),
        (2, _momentum_later),
        (2, _capturable),
    ],
)
def test_step_raises_what_torch_raises(pair: int, spoil: Callable[[Any, nn.Parameter], None]) -> None:
    raised = []
    for cls in PAIRS[pair]:
        p = nn.Parameter(torch.ones(3))
        optimizer = cls([p])
        p.grad = torch.ones(3)
        optimizer.step()
        spoil(optimizer, p)
        before = p.detach().clone()
        with pytest.raises(Exception, match=r".") as error:
            optimizer.step()
        raised.append((type(error.value), str(error.value)))
        assert torch.equal(p, before)
    assert raised[0] == raised[1]


@pytest.mark.parametrize(("cls", "reference"), PAIRS[:2])
def test_grad_scaler_with_fused(cls: Any, reference: Any) -> None:
    models = network(), network()
    for model, make in zip(models, (cls, reference), strict=True):
        optimizer = make(model.parameters(), lr=0.01, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(4):
            optimizer.zero_grad()
            x = torch.full((4, 5), float("inf") if step == 2 else 1.0)
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert_close(*models)
