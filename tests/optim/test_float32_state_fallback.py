"""Float32 state and masters of 16-bit parameters: options, training steps, and what torch updates."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import fastnn
from fastnn import optim
from half_precision import (
    MASTERS,
    OPTIMIZERS,
    STATE,
    assert_follows_float32,
    assert_same,
    decisions,
    every_half,
    every_optimizer,
    masters,
    needs_native,
    parameters,
    set_gradients,
    step_natively,
    twins,
)


@pytest.mark.parametrize("cls", [optim.Adam, optim.AdamW, optim.SGD, optim.Adagrad, optim.RMSprop])
def test_the_signature_is_torchs_and_two_more(cls: Any) -> None:
    ours = inspect.signature(cls).parameters
    theirs = inspect.signature(getattr(torch.optim, cls.__name__)).parameters
    assert [*ours] == [*theirs, "state_dtype", "master_weights"]
    assert all(ours[name].default == theirs[name].default for name in theirs)


def test_the_signature_of_a_users_subclass_is_its_own() -> None:
    class Mine(fastnn.optim.Adam):
        def __init__(self, params: Any, warm_up: int) -> None:
            super().__init__(params, lr=1.0 / warm_up)

    assert [*inspect.signature(Mine).parameters] == ["params", "warm_up"]


@pytest.mark.parametrize("cls", [optim.Adam, optim.AdamW, optim.SGD, optim.Adagrad, optim.RMSprop])
def test_bad_options(cls: Any) -> None:
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


@needs_native
def test_a_training_step_object(isa: str) -> None:
    """Of float32 it is unaffected; of bfloat16 it runs eagerly, and right."""
    for dtype in (torch.float32, torch.bfloat16):
        nets = [nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype) for _ in range(2)]
        nets[1].load_state_dict(nets[0].state_dict())
        extra = {} if dtype is torch.float32 else MASTERS
        optimizers = [
            optim.Adam(net.parameters(), lr=0.01, **each)
            for net, each in zip(nets, (MASTERS, extra), strict=True)
        ]
        x, y = torch.randn(16, 5).to(dtype), torch.randint(3, (16,))
        loss = fastnn.nn.CrossEntropyLoss()
        step = fastnn.TrainStep(nets[0], loss, optimizers[0])
        if dtype is torch.float32:
            other = fastnn.TrainStep(nets[1], loss, optimizers[1])
        for _ in range(3):
            step(x, y)
            if dtype is torch.float32:
                other(x, y)
                continue
            optimizers[1].zero_grad()
            loss(nets[1](x), y).backward()
            optimizers[1].step()
        native = dict(fastnn.explain(step, x, y).decisions)["train_step"] is None
        assert native == (dtype is torch.float32)
        if native:
            other(x, y)
        else:
            optimizers[1].zero_grad()
            loss(nets[1](x), y).backward()
            optimizers[1].step()
        params, others = (list(net.parameters()) for net in nets)
        assert_same(params, others)
        if dtype is torch.float32:
            assert not any("master_param" in optimizers[0].state[p] for p in params)
        else:
            assert_same(masters(optimizers[0], params), masters(optimizers[1], others))


@needs_native
@pytest.mark.parametrize("extra", [STATE, MASTERS], ids=str)
@every_half
@every_optimizer
def test_disabled_goes_on_with_the_same_state(
    name: str, dtype: torch.dtype, extra: dict[str, Any], device: torch.device
) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([(5, 6), (7,), 0], dtype, device)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    mine, theirs = cls(params, lr=0.1, **extra, **options), cls(others, lr=0.1, **extra, **options)
    for step in range(6):
        set_gradients(params, others)
        if step == 3:
            params[1].data[2:4] = others[1].data[2:4] = 2.5
        step_natively(mine)
        if step % 3 == 1:
            step_natively(theirs)
        else:
            with fastnn.disabled():
                assert decisions(theirs) == ["fastnn is disabled"]
        for p, q in zip(params, others, strict=True):
            assert mine.state.get(p, {}).keys() == theirs.state.get(q, {}).keys()
            for key, value in theirs.state.get(q, {}).items():
                # Ten roundings of values up to 40 in each of the steps.
                got = mine.state[p][key]
                assert (got.dtype, got.stride()) == (value.dtype, value.stride())
                torch.testing.assert_close(got, value, rtol=0, atol=1e-3 if extra is STATE else 2e-4)
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(p, q, rtol=eps, atol=2e-4)  # next to a midpoint they part
            if extra is STATE:  # where they part the next steps differ
                q.data.copy_(p.data)


def _gaps() -> list[Any]:
    return [nn.Parameter(torch.randn(4, 6).to(torch.bfloat16)[:, ::2])]


FALLBACKS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "gaps": (_gaps, {}, "one block"),
    "differentiable": (
        lambda: [torch.randn(4).to(torch.bfloat16)],
        {"differentiable": True},
        "differentiable",
    ),
}


@needs_native
@pytest.mark.parametrize("case", FALLBACKS)
@every_optimizer
def test_what_torch_must_update(name: str, case: str, device: torch.device) -> None:
    make, more, reason = FALLBACKS[case]
    cls, reference, options = OPTIMIZERS[name]
    with device:
        params = make()
    others = [q.requires_grad_(case != "differentiable") for q in twins(params)]
    mine, theirs = (
        cls(params, lr=0.1, **MASTERS, **more, **options),
        reference(others, lr=0.1, **more, **options),
    )
    for _ in range(3):
        for p, q in zip(params, others, strict=True):
            p.grad = torch.randn_like(p).detach()
            q.grad = p.grad.float()
        (why,) = decisions(mine)
        assert why is not None
        assert reason in why
        theirs.step()
        assert_follows_float32(mine, params, theirs, others)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own
@pytest.mark.parametrize("name", ["sgd", "momentum", "adagrad"])
def test_sparse_gradients_are_left_to_torch(name: str) -> None:
    cls, reference, _ = OPTIMIZERS[name]
    params = parameters([3])
    others = twins(params)
    mine, theirs = cls(params, lr=0.1, **MASTERS), reference(others, lr=0.1)
    for _ in range(2):
        params[0].grad = torch.tensor([0.0, 2.0, 3.0], dtype=torch.bfloat16).to_sparse()
        others[0].grad = torch.tensor([0.0, 2.0, 3.0]).to_sparse()
        mine.step()
        theirs.step()
    assert_follows_float32(mine, params, theirs, others)


@pytest.mark.parametrize("name", ["adam", "momentum", "adagrad"])
@pytest.mark.parametrize("found", [0.0, 1.0])
def test_a_fused_grad_scaler_on_the_cpu(name: str, found: float) -> None:
    """Left to torch, whose fused functions leave the gradients unscaled."""
    cls, _, options = OPTIMIZERS[name]
    params = parameters([30, 4], torch.float16)
    others = twins(params)
    mine, theirs = (
        cls(p, lr=0.1, fused=True, **extra, **options) for p, extra in ((params, MASTERS), (others, {}))
    )
    set_gradients(params, others)
    for optimizer in (mine, theirs):
        optimizer.step()
    before = [p.detach().clone() for p in params] + [m.clone() for m in masters(mine, params)]
    set_gradients(params, others)
    for optimizer in (mine, theirs):
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(found)
        optimizer.step()
    assert_same(masters(mine, params), others)
    assert_same(params, [q.detach().half() for q in others])
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.grad.float(), q.grad, rtol=2.0**-11, atol=0)
    if found:
        assert_same(params + masters(mine, params), before)
