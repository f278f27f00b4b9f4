"""Every optimizer as used by a program: signature, schedulers, closures, hooks, profiler, errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fastnn import optim
from optimizer_cases import (
    KINDS,
    MASTERS,
    STATE,
    Case,
    Kind,
    Options,
    assert_networks_close,
    every_case,
    every_fused,
    every_kind,
    network,
    parameters,
    set_gradients,
    train_network,
)


@every_kind
def test_the_signature_is_torchs_and_two_more(kind: Kind) -> None:
    ours, theirs = (inspect.signature(cls).parameters for cls in (kind.ours, kind.torchs))
    assert [*ours] == [*theirs, "state_dtype", "master_weights"]
    assert all(ours[name].default == theirs[name].default for name in theirs)


@every_kind
def test_the_signature_of_a_user_defined_subclass_is_its_own(kind: Kind) -> None:
    class Mine(kind.ours):
        def __init__(self, params: Any, warm_up: int) -> None:
            super().__init__(params, lr=1.0 / warm_up)

    assert [*inspect.signature(Mine).parameters] == ["params", "warm_up"]


@every_kind
def test_options_of_float32_state(kind: Kind) -> None:
    cls = kind.ours
    with pytest.raises(ValueError, match=r"state_dtype must be None or torch.float32, but is torch.bfloat16"):
        cls(parameters([3]), state_dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"state_dtype must be None or torch.float32, but is 'float32'"):
        cls(parameters([3]), state_dtype="float32")
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such'"):
        cls(parameters([3]), no_such=1)
    optimizer = cls(parameters([3]), master_weights=True)
    assert optimizer.state_dtype is torch.float32
    assert "master_weights" not in optimizer.param_groups[0]
    assert cls(parameters([3])).state_dtype is None


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=25, cycle_momentum=False),
    "one cycle, momentum too": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=25),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
}


@pytest.mark.filterwarnings("error")  # a scheduler warns if it does not see the optimizer's steps
@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("tensor_lr", [False, True])
@every_case
def test_schedulers_set_the_rate(case: Case, schedule: str, tensor_lr: bool) -> None:
    if "momentum" in schedule and case.ours is optim.Adagrad:
        pytest.skip("has no momentum")
    models = network(), network()
    for model, make in zip(models, (case.ours, case.torchs), strict=True):
        lr: Any = torch.tensor(0.01) if tensor_lr else 0.01
        optimizer = make(model.parameters(), lr=lr, **case.options)
        scheduler = SCHEDULERS[schedule](optimizer)
        for step in range(20):
            train_network(model, optimizer, 1, start=step)
            scheduler.step(*([1.0] if schedule == "plateau" else []))
    assert_networks_close(*models)


@every_case
def test_closure_runs_with_grad_and_its_loss_comes_back(case: Case) -> None:
    models, losses = (network(), network()), []
    for net, make in zip(models, (case.ours, case.torchs), strict=True):
        optimizer = make(net.parameters(), lr=0.01, **case.options)

        def closure(net: nn.Module = net, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = net(torch.ones(4, 5)).square().mean()
            loss.backward()
            return loss

        with torch.no_grad():
            losses.append([optimizer.step(closure).item() for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert_networks_close(*models)


@pytest.mark.parametrize("subclassed", [False, True])
@every_kind
def test_step_hooks_run_once_a_step(kind: Kind, subclassed: bool) -> None:
    class Counting(kind.ours):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model = network()
    optimizer = (Counting if subclassed else kind.ours)(model.parameters())
    calls: list[str] = []
    train_network(model, optimizer, 1)
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
        register_optimizer_step_pre_hook(lambda *_: calls.append("all")),
    ]
    train_network(model, optimizer, 2)
    for handle in handles:
        handle.remove()
    train_network(model, optimizer, 1)
    assert calls == ["all", "pre", "post"] * 2


@every_kind
def test_a_pre_hook_may_give_the_closure(kind: Kind) -> None:
    optimizer = kind.ours(parameters([2]))
    optimizer.register_step_pre_hook(lambda _optimizer, _args, kwargs: ((_optimizer, lambda: 5.0), kwargs))
    assert optimizer.step() == 5.0


@every_kind
def test_a_profiler_sees_steps_and_zero_grad(kind: Kind) -> None:
    (param,) = params = parameters([3])
    set_gradients(params)
    optimizer = kind.ours(params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
        optimizer.zero_grad()
    assert param.grad is None
    name = kind.ours.__name__
    seen = {event.name for event in profile.events()}
    assert {f"Optimizer.step#{name}.step", f"Optimizer.zero_grad#{name}.zero_grad"} <= seen


@every_kind
def test_zero_grad_is_torchs(kind: Kind) -> None:
    param, unused = params = parameters([3, 2])
    optimizer = kind.ours(params)
    param.grad = kept = torch.ones(3)
    optimizer.zero_grad(set_to_none=False)
    assert param.grad is kept
    assert not kept.any()
    optimizer.zero_grad()
    assert param.grad is None
    assert unused.grad is None


@pytest.mark.each_value
@pytest.mark.parametrize("extra", [{}, STATE, MASTERS], ids=str)
@pytest.mark.filterwarnings("ignore")  # torch.compile's own
@every_kind
def test_steps_inside_torch_compile(kind: Kind, extra: Options) -> None:
    torch.compiler.reset()
    model, twin = network(), network()
    mine, theirs = kind.ours(model.parameters(), lr=0.1, **extra), kind.torchs(twin.parameters(), lr=0.1)
    set_gradients([*model.parameters()], [*twin.parameters()])
    compiled = torch.compile(lambda: mine.step(), backend="eager")
    for _ in range(2):
        compiled()
        theirs.step()
    assert_networks_close(model, twin)


@pytest.mark.parametrize("infinite", [0, 2])
@every_fused
def test_grad_scaler_with_fused(case: Case, infinite: int) -> None:
    """torch's own optimizer is not fused: a fused one keeps momentum that no step has filled."""
    models = network(), network()
    for model, make in zip(models, (case.ours, case.torchs), strict=True):
        optimizer = make(model.parameters(), lr=0.01, **case.options, fused=make is case.ours)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(4):
            optimizer.zero_grad()
            x = torch.full((4, 5), float("inf") if step == infinite else 1.0)
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert_networks_close(*models)


BAD: list[Options] = [
    {"lr": -1.0},
    {"eps": -1.0},
    {"betas": (1.0, 0.9)},
    {"betas": (0.9, -0.1)},
    {"momentum": -1.0},
    {"weight_decay": -1.0},
    {"alpha": -1.0},
    {"lr_decay": -1.0},
    {"initial_accumulator_value": -1.0},
    {"nesterov": True},
    {"lr": torch.tensor([1.0, 2.0])},
    {"fused": True, "foreach": True},
]


@pytest.mark.parametrize("options", BAD, ids=str)
@every_kind
def test_refuses_what_torch_refuses(kind: Kind, options: Options) -> None:
    with pytest.raises((ValueError, RuntimeError, TypeError)) as expected:
        kind.torchs([nn.Parameter(torch.ones(1))], **options)
    with pytest.raises(type(expected.value)) as raised:
        kind.ours([nn.Parameter(torch.ones(1))], **options)
    assert str(raised.value) == str(expected.value)


def _sparse(optimizer: Any, p: Any) -> None:
    p.grad = torch.ones(3).to_sparse()


def _sparse_and(**options: Any) -> Callable[[Any, Any], None]:
    def spoil(optimizer: Any, p: Any) -> None:
        optimizer.param_groups[0].update(options)
        p.grad = torch.ones(3).to_sparse()

    return spoil


def _set(**options: Any) -> Callable[[Any, Any], None]:
    return lambda optimizer, p: optimizer.param_groups[0].update(options)


SPOILED = {
    "Adam, sparse": ("Adam", _sparse),
    "Adam, amsgrad later": ("Adam", _set(amsgrad=True)),
    "Adam, capturable": ("Adam", _set(capturable=True)),
    "Adam, foreach and a tensor": ("Adam", _set(foreach=True, lr=torch.tensor(0.1))),
    "AdamW, sparse": ("AdamW", _sparse),
    "SGD, sparse and fused": ("SGD", _sparse_and(fused=True)),
    "SGD, sparse, momentum and fused": ("SGD", _sparse_and(fused=True, momentum=0.9)),
    "Adagrad, sparse and decay": ("Adagrad", _sparse_and(weight_decay=0.1)),
    "RMSprop, sparse": ("RMSprop", _sparse),
    "RMSprop, centered later": ("RMSprop", _set(centered=True)),
    "RMSprop, momentum later": ("RMSprop", _set(momentum=0.9)),
    "RMSprop, capturable": ("RMSprop", _set(capturable=True)),
}


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("spoiled", SPOILED)
def test_step_raises_what_torch_raises(spoiled: str, stepped: bool) -> None:
    name, spoil = SPOILED[spoiled]
    if "later" in spoiled and not stepped:
        pytest.skip("is right before the first step")
    raised = []
    for cls in (KINDS[name].torchs, KINDS[name].ours):
        p = nn.Parameter(torch.ones(3))
        optimizer = cls([p])
        p.grad = torch.ones(3)
        if stepped:
            optimizer.step()
        spoil(optimizer, p)
        before = p.detach().clone()
        with pytest.raises(Exception, match=r".") as error:
            optimizer.step()
        raised.append((type(error.value), str(error.value)))
        assert torch.equal(p, before)
    assert raised[0] == raised[1]
