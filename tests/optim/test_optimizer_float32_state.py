"""Float32 state and masters of 16-bit parameters: values with every kernel, and changes between steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastnn
from fastnn import optim
from optimizer_cases import (
    CASES,
    HALF,
    MASTERS,
    SIZES,
    STATE,
    Beside,
    Case,
    Options,
    assert_follows_float32,
    assert_same,
    decisions,
    either,
    every_case,
    every_half,
    master,
    masters,
    needs_native,
    parameters,
    set_gradients,
    step_natively,
    twins,
)

pytestmark = needs_native


@either
@every_half
@every_case
def test_they_are_a_float32_optimizers_bit_for_bit(
    every_device: torch.device, case: Case, dtype: torch.dtype, extra: Options
) -> None:
    params = parameters(SIZES, dtype, every_device)
    run = Beside(case, params, extra)
    for _ in range(6):
        run.train(1)
        run.check()
        for p, q in zip(params, run.others, strict=True):
            assert ("master_param" in run.mine.state.get(p, {})) == (extra is MASTERS)
            if extra is STATE:  # parameters are rounded after every step
                q.data.copy_(p.data)


@either
@every_half
@every_case
def test_against_float64(every_device: torch.device, case: Case, dtype: torch.dtype, extra: Options) -> None:
    params = parameters(SIZES, dtype, every_device)
    others = twins([p.cpu() for p in params], torch.float64)
    options = {**case.options, "lr": 0.1}
    mine, theirs = case.ours(params, **extra, **options), case.torchs(others, **options)
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
            # The parameter is rounded once: to half an eps of it, unless it is subnormal.
            half_eps, tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal
            rounded = {"rtol": half_eps * 1.001, "atol": bound["atol"] + tiny * half_eps}
            torch.testing.assert_close(p.detach().cpu().double(), q.detach(), **rounded)
            if extra is STATE:
                q.data.copy_(p.data)


@every_case
def test_bfloat16_alone_does_not_move_where_masters_move(every_device: torch.device, case: Case) -> None:
    options = {**case.options, "weight_decay": 0.0, "maximize": False}
    # So that one step is below 2^-9, half the distance to the number before 1, and 200 steps are above.
    options["lr"] = 1e-5 if "centered" in options else 1e-4
    if case.ours is optim.Adagrad:
        options |= {"lr": 1e-3, "lr_decay": 0.0}
    ends = {}
    for kind, extra in (("alone", {}), ("state", STATE), ("masters", MASTERS)):
        p = nn.Parameter(torch.full((40,), 1.0, dtype=torch.bfloat16, device=every_device))
        optimizer = case.ours([p], **extra, **options)
        for step in range(200):
            # All of one sign; the variance of equal ones would be 0.
            p.grad = torch.full_like(p, 1.0 if step % 2 else 0.5)
            step_natively(optimizer)
        ends[kind] = p.detach().clone()
        if kind == "masters":
            assert (master(optimizer, p) < 1 - 1e-3).all()
    assert (ends["alone"] == 1).all()
    assert (ends["state"] == 1).all()
    assert (ends["masters"] < 1).all()


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
    torch.testing.assert_close(ends[0], torch.full_like(ends[0], first), rtol=2.0**-8, atol=0)  # constant
    torch.testing.assert_close(ends[1], torch.full_like(ends[1], first * 0.999**99), rtol=1e-5, atol=0)


@every_half
@every_case
def test_what_a_user_sets_is_the_new_master(
    every_device: torch.device, case: Case, dtype: torch.dtype
) -> None:
    params = parameters([100, 7], dtype, every_device)
    run = Beside(case, params, MASTERS)
    values = torch.tensor([3.0, -2.0, 0.0, -0.0, float("nan"), float("inf"), 1e-7], device=every_device)

    def both(change: Callable[[Any], Any]) -> None:
        for each in (*params, *run.others):
            change(each)
        run.train(1)
        run.check()

    for _ in range(3):
        both(lambda t: None)
    both(lambda t: t.data[:7].copy_(values.to(dtype)))  # in place, a part
    both(lambda t: t.data[4:6].fill_(2.5))  # NaN and infinity are gone, except in the state
    both(lambda t: setattr(t, "data", torch.full_like(t, 77.5)))  # in other memory
    both(lambda t: None)


@every_half
@every_case
def test_the_same_values_again_keep_the_masters(
    every_device: torch.device, case: Case, dtype: torch.dtype
) -> None:
    """A model and its optimizer may be loaded in any order."""
    params = parameters([100], dtype, every_device)
    run = Beside(case, params, MASTERS)
    for _ in range(5):
        params[0].data.copy_(params[0].detach().clone())
        run.train(1)
        run.check()


@either
@every_case
def test_wider_parameters_are_unaffected(every_device: torch.device, case: Case, extra: Options) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32]
    params = [parameters([33], dtype, every_device)[0] for dtype in dtypes]
    others = twins(params)
    mine, theirs = case.ours(params, **extra, **case.options), case.ours(others, **case.options)
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


@every_case
def test_masters_that_are_dropped_begin_again(every_device: torch.device, case: Case) -> None:
    params = parameters([50], torch.bfloat16, every_device)
    run = Beside(case, params, MASTERS, lr=0.1)
    for drop in (False, True, False):
        if drop:
            del run.mine.state[params[0]]["master_param"]
            run.others[0].data.copy_(params[0].detach())
        run.train(1)
    run.check()


@either
@every_half
@every_case
def test_disabled_continues_with_the_same_state(
    case: Case, dtype: torch.dtype, extra: Options, device: torch.device
) -> None:
    params = parameters([(5, 6), (7,), 0], dtype, device)
    others = twins(params)
    options = {**case.options, **extra, "lr": 0.1}
    mine, theirs = case.ours(params, **options), case.ours(others, **options)
    for step in range(6):
        set_gradients(params, others)
        if step == 3:
            params[1].data[2:4] = others[1].data[2:4] = 2.5
        step_natively(mine)
        if step % 3 == 1:
            step_natively(theirs)
        else:
            with fastnn.disabled():
                assert decisions(theirs.step) == ["fastnn is disabled"]
        for p, q in zip(params, others, strict=True):
            assert mine.state.get(p, {}).keys() == theirs.state.get(q, {}).keys()
            for key, value in theirs.state.get(q, {}).items():
                # Ten roundings of values up to 40 in each of the steps.
                got = mine.state[p][key]
                assert (got.dtype, got.stride()) == (value.dtype, value.stride())
                torch.testing.assert_close(got, value, rtol=0, atol=1e-3 if extra is STATE else 2e-4)
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(p, q, rtol=eps, atol=2e-4)  # near a midpoint they diverge
            if extra is STATE:  # once they diverge the next steps differ
                q.data.copy_(p.data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_training_step_object(isa: str, dtype: torch.dtype) -> None:
    """In float32 it is unaffected; in bfloat16 it runs eagerly, and correctly."""
    half = dtype is torch.bfloat16
    nets = [nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    mine, theirs = (
        optim.Adam(net.parameters(), lr=0.01, **extra)
        for net, extra in zip(nets, (MASTERS, MASTERS if half else {}), strict=True)
    )
    x, y = torch.randn(16, 5).to(dtype), torch.randint(3, (16,))
    loss = fastnn.nn.CrossEntropyLoss()
    step, other = (fastnn.TrainStep(net, loss, o) for net, o in zip(nets, (mine, theirs), strict=True))

    def eagerly() -> None:
        theirs.zero_grad()
        loss(nets[1](x), y).backward()
        theirs.step()

    for _ in range(3):
        step(x, y)
        eagerly() if half else other(x, y)
    assert (dict(fastnn.explain(step, x, y).decisions)["train_step"] is None) == (not half)
    eagerly() if half else other(x, y)
    params, others = (list(net.parameters()) for net in nets)
    assert_same(params, others)
    if half:
        assert_same(masters(mine, params), masters(theirs, others))
    else:
        assert not any("master_param" in mine.state[p] for p in params)


def _gaps() -> list[Any]:
    return [nn.Parameter(torch.randn(4, 6).to(torch.bfloat16)[:, ::2])]


LEFT_TO_TORCH: dict[str, tuple[Callable[[], list[Any]], Options, str]] = {
    "gaps": (_gaps, {}, "one block"),
    "differentiable": (
        lambda: [torch.randn(4).to(torch.bfloat16)],
        {"differentiable": True},
        "differentiable",
    ),
}


@pytest.mark.parametrize("left", LEFT_TO_TORCH)
@every_case
def test_what_torch_must_update(case: Case, left: str, device: torch.device) -> None:
    make, more, reason = LEFT_TO_TORCH[left]
    with device:
        params = make()
    others = [q.requires_grad_(left != "differentiable") for q in twins(params, torch.float32)]
    options = {**case.options, **more, "lr": 0.1}
    mine, theirs = case.ours(params, **MASTERS, **options), case.torchs(others, **options)
    for _ in range(3):
        for p, q in zip(params, others, strict=True):
            p.grad = torch.randn_like(p).detach()
            q.grad = p.grad.float()
        (why,) = decisions(mine.step)
        assert why is not None
        assert reason in why
        theirs.step()
        assert_follows_float32(mine, params, theirs, others)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own
@pytest.mark.parametrize("name", ["sgd", "momentum", "adagrad"])
def test_sparse_gradients_are_left_to_torch(name: str) -> None:
    options = {"lr": 0.1, "momentum": 0.9} if name == "momentum" else {"lr": 0.1}
    params = parameters([3], torch.bfloat16)
    others = twins(params, torch.float32)
    mine, theirs = CASES[name].ours(params, **MASTERS, **options), CASES[name].torchs(others, **options)
    for _ in range(2):
        params[0].grad = torch.tensor([0.0, 2.0, 3.0], dtype=torch.bfloat16).to_sparse()
        others[0].grad = torch.tensor([0.0, 2.0, 3.0]).to_sparse()
        mine.step()
        theirs.step()
    assert_follows_float32(mine, params, theirs, others)


@pytest.mark.parametrize("name", ["adam", "momentum", "adagrad"])
@pytest.mark.parametrize("found", [0.0, 1.0])
def test_a_fused_grad_scaler_on_the_cpu(name: str, found: float) -> None:
    """Left to torch, whose fused functions unscale the gradients in place."""
    params = parameters([30, 4], torch.float16)
    run = Beside(CASES[name], params, MASTERS, native={"fused": True}, lr=0.1)
    run.train(1)
    before = [p.detach().clone() for p in (*params, *masters(run.mine, params))]
    set_gradients(params, run.others)
    for optimizer, _ in run.both():
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(found)
        optimizer.step()
    run.check()
    for p, q in zip(params, run.others, strict=True):
        torch.testing.assert_close(p.grad.float(), q.grad, rtol=2.0**-11, atol=0)
    if found:
        assert_same(params + masters(run.mine, params), before)
