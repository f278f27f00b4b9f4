"""Float32 state and masters on CUDA, on a GPU where there is one and emulated: what only a device has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from captured import replayed
from cuda_emulation import Emulation
from fastnn import _dispatch, optim
from half_precision import (
    HALF,
    MASTERS,
    OPTIMIZERS,
    STATE,
    assert_follows_float32,
    assert_same,
    every_optimizer,
    master,
    masters,
    parameters,
    set_gradients,
    step_natively,
    twins,
)

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")

# An optimizer counts its steps on the device under these.
ON_DEVICE = {"adam": "fused", "amsgrad": "capturable", "adamw": "fused", "adagrad": "fused"} | dict.fromkeys(
    ("rmsprop", "centered momentum"), "capturable"
)


@every_optimizer
def test_more_tensors_than_fit_one_launch(name: str, cuda_device: torch.device) -> None:
    cls, _, options = OPTIMIZERS[name]
    sizes = [(7 * i) % 23 for i in range(150)] + [4096, 1]  # some are empty
    params = parameters(sizes, device=cuda_device)
    others = twins(params)
    mine, theirs = cls(params, lr=0.01, **MASTERS, **options), cls(others, lr=0.01, **options)
    for _ in range(2):
        set_gradients(params, others)
        params[5].grad = others[5].grad = None
        step_natively(mine)
        step_natively(theirs)
    set_gradients(params, others)
    step_natively(mine)
    step_natively(theirs)
    assert_follows_float32(mine, params, theirs, others)


@pytest.mark.parametrize("extra", [STATE, MASTERS], ids=str)
@every_optimizer
def test_one_launch_for_all_parameters(name: str, extra: dict[str, Any], emulated_cuda: Emulation) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([50, 3, 1000, 7])
    mine = cls(params, lr=0.01, **extra, **options)
    for _ in range(2):
        set_gradients(params)
        before = emulated_cuda.checks.launches()
        step_natively(mine)
        assert emulated_cuda.checks.launches() - before == 1


@pytest.mark.parametrize("name", ON_DEVICE)
def test_steps_counted_on_the_device(name: str, cuda_device: torch.device) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([300, 5, 0], device=cuda_device)
    others = twins(params)
    lr = torch.tensor(0.01, dtype=torch.float64, device=cuda_device)
    mine, theirs = (
        cls(p, lr=lr, **extra, **options, **{ON_DEVICE[name]: True})
        for p, extra in ((params, MASTERS), (others, {}))
    )
    for step in range(1, 5):
        if step == 3:
            lr.fill_(0.005)  # the device's own number is read
        set_gradients(params, others)
        step_natively(mine)
        step_natively(theirs)
        assert_follows_float32(mine, params, theirs, others)


def snapshot(optimizer: Any, param: Any) -> dict[str, Tensor]:
    now = {"param": param, "grad": param.grad, **optimizer.state.get(param, {})}
    return {key: value.detach().clone() for key, value in now.items()}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "momentum", "adagrad"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_what_a_grad_scaler_leaves_to_the_optimizer(
    name: str, dtype: torch.dtype, cuda_device: torch.device
) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([300, 5, 33], dtype, cuda_device)
    others = twins(params)
    mine, theirs = (
        cls(p, lr=0.01, **extra, **options, fused=True) for p, extra in ((params, MASTERS), (others, {}))
    )
    scale = torch.full((), 64.0, device=cuda_device)
    for found in (1.0, 0.0, 0.0, 1.0, 0.0):
        set_gradients(params, others)
        if found:  # to be left as it is
            params[0].grad[3] = others[0].grad[3] = float("inf")
        old = [snapshot(mine, p) for p in params]
        for optimizer in (mine, theirs):
            optimizer.grad_scale, optimizer.found_inf = scale, torch.full((1,), found, device=cuda_device)
            step_natively(optimizer)
        for p, q in zip(params, others, strict=True):  # unscaled in place, as by torch's fused optimizers
            assert_same([p.grad], [q.grad.to(dtype)])
        for p, before in zip(params, old, strict=True):
            after = snapshot(mine, p)
            assert torch.equal(after["master_param"].to(dtype), after["param"])
            if found:  # but in the first step, where state is made
                assert_same([after[key] for key in before], list(before.values()))
        assert_follows_float32(mine, params, theirs, others)


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_a_skipped_step_keeps_what_a_user_set(found: float, cuda_device: torch.device) -> None:
    params = parameters([40], device=cuda_device)
    mine = optim.Adam(params, fused=True, **MASTERS)
    set_gradients(params)
    step_natively(mine)
    params[0].data.fill_(0.5)
    mine.grad_scale, mine.found_inf = None, torch.full((1,), found, device=cuda_device)
    step_natively(mine)
    mine.found_inf = torch.zeros(1, device=cuda_device)
    params[0].grad.zero_()
    mine.state[params[0]]["exp_avg"].zero_()
    step_natively(mine)
    # Nothing pulls: the master is what was set, or a step of the learning rate from it.
    distance = (master(mine, params[0]) - 0.5).abs().max().item()
    assert distance == 0 if found else 0 < distance < 0.01


def as_misaligned(t: Tensor, elements: int) -> Tensor:
    """A copy of `t` that begins so many elements behind a boundary."""
    return torch.empty(elements + t.numel(), dtype=t.dtype, device=t.device)[elements:].copy_(t)


@every_optimizer
@pytest.mark.parametrize("state_ahead", [0, 0.5, 1])
def test_bitwise_the_same_wherever_an_element_lies(
    name: str, state_ahead: float, cuda_device: torch.device
) -> None:
    """At another alignment, in another tensor, beside others: the same bits.

    Behind a boundary the state begins as many elements as the parameter (whole packs of all can be read),
    half as many (as many bytes: they cannot) or none.
    """
    cls, _, options = OPTIMIZERS[name]
    n = 2 * 4096 + 5
    start = torch.randn(n).bfloat16()
    grads = [torch.randn(n).bfloat16() for _ in range(3)]
    results: list[Tensor] = []
    for offset, pieces in ((0, [n]), (1, [n]), (4, [n]), (2, [3, 4096, 1, n - 4100])):
        memory = torch.zeros(n + offset, dtype=torch.bfloat16, device=cuda_device)
        params = [nn.Parameter(part) for part in memory[offset:].copy_(start).split(pieces)]
        mine = cls(params, lr=0.01, **MASTERS, **options)
        for grad in grads:
            for p, part in zip(params, grad.to(cuda_device).split(pieces), strict=True):
                ahead = p.data_ptr() % 16 // 2
                p.grad = as_misaligned(part, ahead)
                for key, state in mine.state[p].items():
                    if key != "step":
                        mine.state[p][key] = as_misaligned(state, int(state_ahead * ahead))
            step_natively(mine)
        results.append(torch.cat([t.detach().float() for t in (*params, *masters(mine, params))]).cpu())
        assert not memory[:offset].any()
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.cuda
def test_capture() -> None:
    params = parameters([300, 5], device="cuda")
    others = [nn.Parameter(p.detach().clone()) for p in params]
    mine, eager = (optim.Adam(p, lr=0.01, capturable=True, **MASTERS) for p in (params, others))
    set_gradients(params, others)
    step_natively(mine)
    step_natively(eager)

    def step() -> list[Tensor]:
        step_natively(mine)
        return []

    replayed(step, times=3)
    for _ in range(3):
        step_natively(eager)
    assert_same(params + masters(mine, params), others + masters(eager, others))


@pytest.mark.cuda
@every_optimizer
def test_without_the_module_torch_goes_on(name: str) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([300, 5], device="cuda")
    others = twins(params)
    mine, theirs = cls(params, lr=0.01, **MASTERS, **options), cls(others, lr=0.01, **options)
    for _ in range(3):
        set_gradients(params, others)
        with fastnn.disabled():
            mine.step()
            theirs.step()
    assert_follows_float32(mine, params, theirs, others)
