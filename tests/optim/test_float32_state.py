"""Float32 state and masters of 16-bit parameters: values with every kernel, and users between steps."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from every_kernel import assert_reproducible, emulating
from fastnn import optim
from half_precision import (
    HALF,
    MASTERS,
    OPTIMIZERS,
    STATE,
    assert_follows_float32,
    assert_same,
    every_half,
    every_optimizer,
    master,
    masters,
    needs_native,
    parameters,
    set_gradients,
    step_natively,
    twins,
)

# Around the widths of vectors (4 to 16 lanes) and of the chunks that work is cut into.
SIZES = [0, 1, 3, 5, 8, 9, 16, 17, 33, 64, 65, 1023, 1025, 5000]


@needs_native
@every_half
@every_optimizer
def test_masters_are_a_float32_optimizer_bit_by_bit(
    every_device: torch.device, name: str, dtype: torch.dtype
) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters(SIZES, dtype, every_device)
    others = twins(params)
    mine, theirs = cls(params, lr=0.01, **MASTERS, **options), cls(others, lr=0.01, **options)
    for _ in range(6):
        set_gradients(params, others)
        step_natively(mine)
        step_natively(theirs)
        assert_follows_float32(mine, params, theirs, others)


@needs_native
@every_half
@every_optimizer
def test_float32_state_is_that_of_a_float32_optimizer(
    every_device: torch.device, name: str, dtype: torch.dtype
) -> None:
    """Whose parameters are rounded after every step."""
    cls, _, options = OPTIMIZERS[name]
    params = parameters(SIZES, dtype, every_device)
    others = twins(params)
    mine, theirs = cls(params, lr=0.01, **STATE, **options), cls(others, lr=0.01, **options)
    for _ in range(6):
        set_gradients(params, others)
        step_natively(mine)
        step_natively(theirs)
        assert_follows_float32(mine, params, theirs, others)
        assert not any("master_param" in mine.state.get(p, {}) for p in params)
        for p, q in zip(params, others, strict=True):
            q.data.copy_(p.data)


@needs_native
@pytest.mark.parametrize("extra", [STATE, MASTERS], ids=str)
@every_half
@every_optimizer
def test_values_against_float64(
    every_device: torch.device, name: str, dtype: torch.dtype, extra: dict[str, Any]
) -> None:
    cls, reference, options = OPTIMIZERS[name]
    params = parameters(SIZES, dtype, every_device)
    others = twins([p.cpu() for p in params], torch.float64)
    mine, theirs = cls(params, lr=0.1, **extra, **options), reference(others, lr=0.1, **options)
    # About ten roundings of half an eps in the arithmetic of each step, of values up to 40 (squares of
    # gradients up to 5 summed, buffers of quotients up to 10); errors stay in the state for all four steps.
    steps = 4
    bound = {"rtol": 0.0, "atol": steps * 200 * torch.finfo(torch.float32).eps}
    for _ in range(steps):
        set_gradients(params, others)
        step_natively(mine)
        theirs.step()
        for p, q in zip(params, others, strict=True):
            state = mine.state.get(p, {})
            for key, value in theirs.state[q].items():
                torch.testing.assert_close(state[key].cpu().double(), value.double(), **bound)
            if extra is MASTERS:
                torch.testing.assert_close(state["master_param"].cpu().double(), q.detach(), **bound)
            # The parameter is rounded once: to half an eps of it, where it is no subnormal.
            half_eps, tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal
            rounded = {"rtol": half_eps * 1.001, "atol": bound["atol"] + tiny * half_eps}
            torch.testing.assert_close(p.detach().cpu().double(), q.detach(), **rounded)
            if extra is STATE:
                q.data.copy_(p.data)


@needs_native
@every_optimizer
def test_bfloat16_alone_stands_still_where_masters_move(every_device: torch.device, name: str) -> None:
    cls, _, options = OPTIMIZERS[name]
    options = {**options, "weight_decay": 0.0, "maximize": False}
    lr = 1e-4  # so that a step is below 2^-9, half the distance to the number before 1, and 200 are above
    if cls is optim.Adagrad:
        lr, options["lr_decay"] = 1e-3, 0.0
    elif "centered" in options:
        lr = 1e-5
    ends = {}
    for kind, extra in (("alone", {}), ("state", STATE), ("masters", MASTERS)):
        p = nn.Parameter(torch.full((40,), 1.0, dtype=torch.bfloat16, device=every_device))
        optimizer = cls([p], lr=lr, **extra, **options)
        for step in range(200):
            # Of one sign on the whole; the variance of equal ones would be 0.
            p.grad = torch.full_like(p, 1.0 if step % 2 else 0.5)
            step_natively(optimizer)
        ends[kind] = p.detach().clone()
        if kind == "masters":
            assert (master(optimizer, p) < 1 - 1e-3).all()
    assert (ends["alone"] == 1).all()
    assert (ends["state"] == 1).all()
    assert (ends["masters"] < 1).all()


@needs_native
def test_a_second_moment_decays_in_float32_alone(every_device: torch.device) -> None:
    ends = []
    for extra in ({}, STATE):
        p = nn.Parameter(torch.zeros(20, dtype=torch.bfloat16, device=every_device))
        optimizer = optim.Adam([p], **extra)
        for step in range(100):
            p.grad = torch.full_like(p, 0.0 if step else 32.0)
            step_natively(optimizer)
        ends.append(optimizer.state[p]["exp_avg_sq"].cpu().double())
    first = 1024 * 0.001
    torch.testing.assert_close(ends[0], torch.full_like(ends[0], first), rtol=2.0**-8, atol=0)  # stands still
    torch.testing.assert_close(ends[1], torch.full_like(ends[1], first * 0.999**99), rtol=1e-5, atol=0)


@needs_native
@every_half
@every_optimizer
def test_what_a_user_sets_is_the_new_master(
    every_device: torch.device, name: str, dtype: torch.dtype
) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([100, 7], dtype, every_device)
    others = twins(params)
    mine, theirs = cls(params, lr=0.01, **MASTERS, **options), cls(others, lr=0.01, **options)
    values = torch.tensor([3.0, -2.0, 0.0, -0.0, float("nan"), float("inf"), 1e-7], device=every_device)

    def both(change: Any) -> None:
        for p, q in zip(params, others, strict=True):
            change(p)
            change(q)
        set_gradients(params, others)
        step_natively(mine)
        step_natively(theirs)
        assert_follows_float32(mine, params, theirs, others)

    for _ in range(3):
        both(lambda t: None)
    both(lambda t: t.data[:7].copy_(values.to(dtype)))  # in place, a part
    both(lambda t: t.data[4:6].fill_(2.5))  # NaN and infinity are gone, but in the state
    both(lambda t: setattr(t, "data", torch.full_like(t, 77.5)))  # in other memory
    both(lambda t: None)


@needs_native
@every_half
def test_the_same_values_again_keep_the_masters(every_device: torch.device, dtype: torch.dtype) -> None:
    """A model and its optimizer are loaded in any order."""
    params = parameters([100], dtype, every_device)
    others = twins(params)
    mine, theirs = optim.Adam(params, **MASTERS), optim.Adam(others)
    for _ in range(5):
        params[0].data.copy_(params[0].detach().clone())
        set_gradients(params, others)
        step_natively(mine)
        step_natively(theirs)
        assert_follows_float32(mine, params, theirs, others)


@needs_native
@pytest.mark.parametrize("extra", [STATE, MASTERS], ids=str)
@every_optimizer
def test_wider_parameters_are_unaffected(
    every_device: torch.device, name: str, extra: dict[str, Any]
) -> None:
    cls, _, options = OPTIMIZERS[name]
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32]
    params = [parameters([33], dtype, every_device)[0] for dtype in dtypes]
    others = [nn.Parameter(p.detach().clone()) for p in params]
    mine, theirs = cls(params, lr=0.01, **extra, **options), cls(others, lr=0.01, **options)
    for _ in range(3):
        set_gradients(params, others)
        step_natively(mine)
        step_natively(theirs)
    for p, q in zip(params, others, strict=True):
        state = mine.state.get(p, {})
        if p.dtype in HALF:
            assert all(value.dtype is torch.float32 for value in state.values())
            assert ("master_param" in state) == (extra is MASTERS)
        else:
            assert state.keys() == theirs.state[q].keys()
            assert_same([p, *state.values()], [q, *theirs.state[q].values()])


@needs_native
@every_optimizer
def test_the_same_bits_every_time(name: str, every_device: torch.device) -> None:
    cls, _, options = OPTIMIZERS[name]
    shapes = [200, 3, 1025, 0, 999] if emulating() else [20_000, 3, 1025, 0, 9_999]

    def run() -> list[Tensor]:
        torch.manual_seed(1)
        params = parameters(shapes, device=every_device)
        optimizer = cls(params, lr=0.1, **MASTERS, **options)
        for _ in range(3):
            set_gradients(params)
            step_natively(optimizer)
        return [p.detach() for p in params] + masters(optimizer, params)

    assert_reproducible(run, every_device)


@needs_native
@every_half
@every_optimizer
def test_views_that_are_not_aligned(every_device: torch.device, name: str, dtype: torch.dtype) -> None:
    cls, _, options = OPTIMIZERS[name]
    for offset, size in itertools.product((1, 3), (1, 17, 100)):
        memory = torch.randn(size + offset).to(dtype).to(every_device)
        before = memory[:offset].clone()
        params = [nn.Parameter(memory[offset:])]
        others = [nn.Parameter(params[0].detach().clone())]
        mine, theirs = (cls(p, lr=0.1, **MASTERS, **options) for p in (params, others))
        for _ in range(3):
            set_gradients(params, others)
            step_natively(mine)
            step_natively(theirs)
        assert_same(params + masters(mine, params), others + masters(theirs, others))
        assert torch.equal(memory[:offset], before)


@needs_native
@pytest.mark.parametrize("matching", [True, False])
@every_optimizer
def test_transposed_parameters(every_device: torch.device, name: str, matching: bool) -> None:
    cls, _, options = OPTIMIZERS[name]
    half = torch.bfloat16
    params = [
        nn.Parameter(torch.randn(30, 40, device=every_device).to(half).t()),
        nn.Parameter(
            torch.randn(2, 3, 4, 5, device=every_device).to(half, memory_format=torch.channels_last)
        ),
        nn.Parameter(torch.randn(4, 1, 6, device=every_device).to(half).permute(2, 1, 0)),
    ]
    others = [nn.Parameter(p.detach().float().contiguous()) for p in params]
    mine, theirs = cls(params, lr=0.1, **MASTERS, **options), cls(others, lr=0.1, **options)
    for _ in range(3):
        set_gradients(params, others)
        if matching:
            for p in params:
                p.grad = torch.empty_like(p).copy_(p.grad)
        step_natively(mine)
        step_natively(theirs)
    assert_follows_float32(mine, params, theirs, others)
    for p in params:
        assert all(value.stride() == p.stride() for key, value in mine.state[p].items() if key != "step")


@needs_native
@every_optimizer
def test_none_empty_and_zero_dimensional(every_device: torch.device, name: str) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([(3,), (0, 4), ()], device=every_device)
    others = twins(params)
    mine, theirs = cls(params, lr=0.5, **MASTERS, **options), cls(others, lr=0.5, **options)
    for same in (params, others):
        same[1].grad, same[2].grad = torch.zeros_like(same[1]), torch.full_like(same[2], 2.0)
    step_natively(mine)
    step_natively(theirs)
    assert_same(params, [q.detach().to(torch.bfloat16) for q in others])
    assert "master_param" not in mine.state.get(params[0], {})
    assert master(mine, params[1]).shape == (0, 4)
    # The one that was left out begins when its gradient comes, with what it is by then.
    params[0].data.fill_(7)
    others[0].data.fill_(7)
    set_gradients(params, others)
    step_natively(mine)
    step_natively(theirs)
    assert_follows_float32(mine, params, theirs, others)


@needs_native
@every_optimizer
def test_groups_and_parameters_that_come_later(every_device: torch.device, name: str) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([5, 6], device=every_device)
    others = twins(params)
    mine, theirs = cls(params[:1], lr=0.1, **MASTERS, **options), cls(others[:1], lr=0.1, **options)
    set_gradients(params, others)
    step_natively(mine)
    step_natively(theirs)
    mine.add_param_group({"params": params[1:], "lr": 0.2})
    theirs.add_param_group({"params": others[1:], "lr": 0.2})
    for _ in range(2):
        set_gradients(params, others)
        step_natively(mine)
        step_natively(theirs)
    assert_follows_float32(mine, params, theirs, others)


@needs_native
@every_optimizer
def test_masters_that_are_dropped_begin_anew(every_device: torch.device, name: str) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([50], device=every_device)
    others = twins(params)
    mine, theirs = cls(params, lr=0.1, **MASTERS, **options), cls(others, lr=0.1, **options)
    for drop in (False, True, False):
        if drop:
            del mine.state[params[0]]["master_param"]
            others[0].data.copy_(params[0].detach())
        set_gradients(params, others)
        step_natively(mine)
        step_natively(theirs)
    assert_follows_float32(mine, params, theirs, others)


@needs_native
def test_what_is_written_is_seen_by_autograd(every_device: torch.device) -> None:
    params = parameters([3], device=every_device)
    optimizer = optim.Adam(params, amsgrad=True, **MASTERS)
    set_gradients(params)
    step_natively(optimizer)
    written = [params[0], *optimizer.state[params[0]].values()]
    assert len(written) == 6
    versions = [t._version for t in written]
    step_natively(optimizer)
    assert all(t._version > version for t, version in zip(written, versions, strict=True))
