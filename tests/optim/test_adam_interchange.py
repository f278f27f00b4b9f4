"""Adam and AdamW next to torch's: checkpoints, schedulers, hooks, errors."""

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
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fastnn import _dispatch, optim

needs_native = pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")
PAIRS = [(optim.Adam, torch.optim.Adam), (optim.AdamW, torch.optim.AdamW)]


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


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file)
    return loaded


@pytest.mark.parametrize(("cls", "reference"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}, {"foreach": True}], ids=str)
def test_same_state_dict_and_repr(cls: Any, reference: Any, dtype: torch.dtype, options: Any) -> None:
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


@pytest.mark.parametrize(("cls", "reference"), PAIRS)
@pytest.mark.parametrize("swap", [False, True])
def test_checkpoints_pass_both_ways(cls: Any, reference: Any, swap: bool) -> None:
    first, second = (reference, cls) if swap else (cls, reference)
    model, unbroken = network(), network()
    options: dict[str, Any] = {"lr": 0.05, "amsgrad": True, "weight_decay": 0.02}
    theirs = reference(unbroken.parameters(), **options)
    train(unbroken, theirs, 30)
    before = first(model.parameters(), **options)
    train(model, before, 15)
    resumed = network()
    resumed.load_state_dict(model.state_dict())
    after = second(resumed.parameters(), lr=9.0)
    after.load_state_dict(through_file(before.state_dict()))
    train(resumed, after, 15, start=15)
    assert_close(resumed, unbroken)


def _reload(optimizer: optim.Adam, model: nn.Module) -> optim.Adam:
    fresh = type(optimizer)(model.parameters())
    fresh.load_state_dict(through_file(optimizer.state_dict()))
    return fresh


@pytest.mark.parametrize("cls", [optim.Adam, optim.AdamW])
@pytest.mark.parametrize("how", ["file", "deepcopy", "pickle"])
def test_resumes_exactly(cls: type[optim.Adam], how: str) -> None:
    model, unbroken = network(), network()
    train(unbroken, cls(unbroken.parameters(), lr=0.05), 12)
    optimizer = cls(model.parameters(), lr=0.05)
    train(model, optimizer, 6)
    if how == "file":
        optimizer = _reload(optimizer, model)
    else:
        pair = (model, optimizer)
        model, optimizer = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert type(optimizer) is cls
    train(model, optimizer, 6, start=6)
    assert_equal(model, unbroken)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "one cycle, momentum too": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=25),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
}


@pytest.mark.filterwarnings("error")  # a scheduler warns where it does not see the optimizer's steps
@pytest.mark.parametrize(("cls", "reference"), PAIRS)
@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_schedulers(cls: Any, reference: Any, schedule: str, tensor_lr: bool) -> None:
    models = network(), network()
    for model, make in zip(models, (cls, reference), strict=True):
        optimizer = make(model.parameters(), lr=torch.tensor(0.05) if tensor_lr else 0.05)
        scheduler = SCHEDULERS[schedule](optimizer)
        for step in range(20):
            train(model, optimizer, 1, start=step)
            scheduler.step(*([1.0] if schedule == "plateau" else []))
    assert_close(*models)


def test_closure_runs_with_grad_and_its_loss_comes_back() -> None:
    model, twin = network(), network()
    losses = []
    for net, cls in ((model, optim.Adam), (twin, torch.optim.Adam)):
        optimizer = cls(net.parameters(), lr=0.1)

        def closure(net: nn.Module = net, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = net(torch.ones(4, 5)).square().mean()
            loss.backward()
            return loss

        with torch.no_grad():
            losses.append([optimizer.step(closure).item() for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert_close(model, twin)


def test_step_hooks_run_once_a_step() -> None:
    class Counting(optim.Adam):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    for cls in (optim.Adam, Counting):
        model = network()
        optimizer = cls(model.parameters())
        calls: list[str] = []
        train(model, optimizer, 1)
        handles = [
            optimizer.register_step_pre_hook(lambda *_, calls=calls: calls.append("pre")),
            optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append("post")),
            register_optimizer_step_pre_hook(lambda *_, calls=calls: calls.append("all")),
        ]
        train(model, optimizer, 2)
        for handle in handles:
            handle.remove()
        train(model, optimizer, 1)
        assert calls == ["all", "pre", "post"] * 2


def test_a_pre_hook_may_give_the_closure() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = optim.Adam([p])
    optimizer.register_step_pre_hook(lambda _optimizer, _args, kwargs: ((_optimizer, lambda: 5.0), kwargs))
    assert optimizer.step() == 5.0


def test_profiler_sees_the_step() -> None:
    model = network()
    optimizer = optim.Adam(model.parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, 1)
    assert "Optimizer.step#Adam.step" in {event.name for event in profile.events()}


@needs_native
def test_state_that_changes_between_steps_is_seen() -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    mine, theirs = optim.Adam([p], lr=0.1), torch.optim.Adam([q], lr=0.1)
    extra, more = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

    def both(change: Callable[[Any, nn.Parameter], None]) -> None:
        for optimizer, parameter in ((mine, p), (theirs, q)):
            change(optimizer, parameter)
            for each in optimizer.param_groups:
                for tensor in each["params"]:
                    tensor.grad = torch.arange(1.0, tensor.numel() + 1)
            optimizer.step()

    both(lambda o, t: None)
    both(lambda o, t: o.state[t].update(exp_avg=torch.full((3,), 2.0)))
    both(lambda o, t: o.state[t].update(max_exp_avg_sq=torch.full((3,), 7.0)))
    both(lambda o, t: o.param_groups[0].update(amsgrad=True, lr=0.3, betas=[0.5, 0.6], eps=1e-2))
    both(lambda o, t: o.add_param_group({"params": [extra if o is mine else more], "lr": 0.2}))
    both(lambda o, t: o.state.pop(t))
    both(lambda o, t: setattr(t, "data", torch.full((3,), 4.0)))
    torch.testing.assert_close(p, q)
    torch.testing.assert_close(extra, more)


@pytest.mark.parametrize(("cls", "reference"), PAIRS)
@pytest.mark.parametrize(
    "options",
    [
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, -0.1)},
        {"lr": -1.0},
        {"eps": -1.0},
        {"weight_decay": -1.0},
        {"lr": torch.tensor([1.0, 2.0])},
        {"fused": True, "foreach": True},
    ],
    ids=str,
)
def test_refuses_what_torch_refuses(cls: Any, reference: Any, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, RuntimeError)) as expected:
        reference([nn.Parameter(torch.ones(1))], **options)
    with pytest.raises(type(expected.value)) as raised:
        cls([nn.Parameter(torch.ones(1))], **options)
    assert str(raised.value) == str(expected.value)


def _sparse(p: nn.Parameter, _optimizer: Any) -> None:
    p.grad = torch.ones(3).to_sparse()


def _sparse_later(p: nn.Parameter, optimizer: Any) -> None:
    p.grad = torch.ones(3)
    optimizer.step()
    p.grad = torch.ones(3).to_sparse()


def _amsgrad_later(p: nn.Parameter, optimizer: Any) -> None:
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = True


def _capturable(p: nn.Parameter, optimizer: Any) -> None:
    p.grad = torch.ones(3)
    optimizer.param_groups[0]["capturable"] = True


def _foreach_tensor_lr(p: nn.Parameter, optimizer: Any) -> None:
    p.grad = torch.ones(3)
    optimizer.param_groups[0].update(foreach=True, lr=torch.tensor(0.1))


@pytest.mark.parametrize("spoil", [_sparse, _sparse_later, _amsgrad_later, _capturable, _foreach_tensor_lr])
def test_step_raises_what_torch_raises(spoil: Callable[[nn.Parameter, Any], None]) -> None:
    raised = []
    for cls in (torch.optim.Adam, optim.Adam):
        p = nn.Parameter(torch.ones(3))
        optimizer = cls([p])
        spoil(p, optimizer)
        before = p.detach().clone()
        with pytest.raises(Exception, match=r".") as error:
            optimizer.step()
        raised.append((type(error.value), str(error.value)))
        assert torch.equal(p, before)
    assert raised[0] == raised[1]


def test_grad_scaler_with_fused() -> None:
    models = network(), network()
    for model, cls in zip(models, (optim.Adam, torch.optim.Adam), strict=True):
        optimizer = cls(model.parameters(), lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(4):
            optimizer.zero_grad()
            x = torch.full((4, 5), float("inf") if step == 2 else 1.0)
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert_close(*models)


def test_zero_grad_is_torchs() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    unused = torch.nn.Parameter(torch.ones(2))
    optimizer = optim.Adam([param, unused])
    param.grad = kept = torch.ones(3)
    optimizer.zero_grad(set_to_none=False)
    assert param.grad is kept
    assert not kept.any()
    optimizer.zero_grad()
    assert param.grad is None
    assert unused.grad is None
    with torch.autograd.profiler.profile() as profile:
        param.grad = torch.ones(3)
        optimizer.zero_grad()
    assert param.grad is None
    assert "Optimizer.zero_grad#Adam.zero_grad" in {event.name for event in profile.function_events}
