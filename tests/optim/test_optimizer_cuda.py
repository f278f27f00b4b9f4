"""Every optimizer on CUDA, on a GPU if there is one and emulated: device-specific behaviour."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from captured import replayed
from cuda_emulation import Emulation
from fastnn import _dispatch, optim
from fastnn.optim.native import match_layout
from optimizer_cases import (
    CASES,
    FUSED,
    HALF,
    KEPT,
    MASTERS,
    STATE,
    Beside,
    Case,
    Options,
    assert_same,
    decisions,
    every_case,
    master,
    masters,
    needs_native,
    parameters,
    set_gradients,
    step_natively,
    twins,
    with_and_without_masters,
)

pytestmark = needs_native

# An optimizer counts its steps on the device under these.
COUNTING: dict[str, Options] = {
    name: {"fused": True} if name in FUSED and name != "amsgrad" else {"capturable": True}
    for name, case in CASES.items()
    if case.ours is not optim.SGD
}
CAPTURABLE = {
    name: {"capturable": True} for name, case in CASES.items() if case.ours not in (optim.SGD, optim.Adagrad)
}


@pytest.mark.parametrize(("dtype", "extra"), [*KEPT, (torch.float64, {})], ids=str)
@every_case
def test_more_tensors_than_fit_one_launch(
    case: Case, dtype: torch.dtype, extra: Options, cuda_device: torch.device
) -> None:
    sizes = [(7 * i) % 23 for i in range(150)] + [4096, 1]  # some are empty
    params = parameters(sizes, dtype, cuda_device)
    run = Beside(case, params, extra)
    for _ in range(2):
        set_gradients(params, run.others)
        params[5].grad = run.others[5].grad = None
        run.step()
    run.train(1)
    run.check()


@pytest.mark.parametrize("extra", [{}, STATE, MASTERS], ids=str)
@every_case
def test_one_launch_for_all_parameters(case: Case, extra: Options, emulated_cuda: Emulation) -> None:
    params = parameters([50, 3, 1000, 7], torch.bfloat16 if extra else torch.float32)
    mine = case.ours(params, **extra, **case.options)
    for _ in range(2):
        set_gradients(params)
        before = emulated_cuda.checks.launches()
        step_natively(mine)
        assert emulated_cuda.checks.launches() - before == 1


@with_and_without_masters
@pytest.mark.parametrize("name", COUNTING)
def test_steps_counted_on_the_device(
    name: str, dtype: torch.dtype, extra: Options, cuda_device: torch.device
) -> None:
    params = parameters([300, 5, 0], dtype, cuda_device)
    lr = torch.tensor(0.01, dtype=torch.float64, device=cuda_device)
    run = Beside(CASES[name], params, extra, native=COUNTING[name], lr=lr)
    for step in range(1, 6):
        if step == 3:
            lr.fill_(0.005)  # the number on the device is read
        if not extra:
            run.theirs.param_groups[0]["lr"] = lr.item()
        set_gradients(params, run.others)
        if step == 2:
            params[1].grad = run.others[1].grad = None
        run.step()
        assert all(run.mine.state[p]["step"].device == p.device for p in params)
        run.check()


@pytest.mark.each_value
@pytest.mark.parametrize("name", COUNTING)
def test_steps_of_many_tensors_counted_on_the_device(name: str, cuda_device: torch.device) -> None:
    """More than one launch counts steps, of two types; some tensors are empty and some lag a step."""
    sizes = [i % 3 for i in range(520)]
    params = parameters(sizes, torch.float32, cuda_device) + parameters(sizes, torch.float64, cuda_device)
    run = Beside(CASES[name], params, {}, native=COUNTING[name])
    for step in range(3):
        set_gradients(params, run.others)
        for i in range(0, len(params), 7) if step == 1 else ():
            params[i].grad = run.others[i].grad = None
        run.step()
    run.check()


@pytest.mark.parametrize("name", COUNTING)
def test_one_launch_counts_and_one_updates(name: str, emulated_cuda: Emulation) -> None:
    params = parameters([50, 3, 0, 1000, 7], torch.float32)
    mine = CASES[name].ours(params, **CASES[name].options, **COUNTING[name])
    for _ in range(2):
        set_gradients(params)
        before = emulated_cuda.checks.launches()
        step_natively(mine)
        assert emulated_cuda.checks.launches() - before == 2


def snapshot(optimizer: Any, param: Any) -> dict[str, Tensor]:
    now = {"param": param, "grad": param.grad, **optimizer.state.get(param, {})}
    return {key: value.detach().clone() for key, value in now.items()}


# All but the first step of dampened momentum.
SKIPPING = {name: case for name, case in FUSED.items() if "dampening" not in case.options}


@pytest.mark.parametrize(
    ("dtype", "extra"), [(torch.float32, {}), *((half, MASTERS) for half in HALF)], ids=str
)
@pytest.mark.parametrize("name", SKIPPING)
def test_what_a_grad_scaler_leaves_to_the_optimizer(
    name: str, dtype: torch.dtype, extra: Options, cuda_device: torch.device
) -> None:
    params = parameters([300, 5, 33], dtype, cuda_device)
    run = Beside(SKIPPING[name], params, extra, native={"fused": True})
    scale = torch.full((), 64.0, device=cuda_device)
    for found in (1.0, 0.0, 0.0, 1.0, 0.0):
        set_gradients(params, run.others)
        expected = [q.grad / 64 for q in run.others]
        if found:  # must not change
            params[0].grad[3] = run.others[0].grad[3] = float("inf")
        old = [snapshot(run.mine, p) for p in params]
        for optimizer, _ in run.both() if extra else run.both()[:1]:
            optimizer.grad_scale, optimizer.found_inf = scale, torch.full((1,), found, device=cuda_device)
            step_natively(optimizer)
        for p, before in zip(params, old, strict=True):
            after = snapshot(run.mine, p)
            if extra:
                assert torch.equal(after["master_param"].to(dtype), after["param"])
            if found:  # except in the first step, which creates state
                assert_same([after[key] for key in before], list(before.values()))
        if not found:
            # Unscaled in place, as by torch's fused optimizers.
            assert_same([p.grad for p in params], [g.to(dtype) for g in expected])
            if not extra:
                for q, grad in zip(run.others, expected, strict=True):
                    q.grad = grad
                run.theirs.step()
        if extra or not found:
            run.check()


@with_and_without_masters
def test_sgds_dampened_momentum_begins_with_the_first_step_that_is_taken(
    dtype: torch.dtype, extra: Options, cuda_device: torch.device
) -> None:
    """The host must know whether it is taken."""
    case = CASES["momentum"]
    params = parameters([300, 5], dtype, cuda_device)
    others = twins(params, torch.float32)
    options = {**case.options, "lr": 0.1}
    mine, theirs = case.ours(params, fused=True, **extra, **options), case.torchs(others, **options)
    why = "a first step, which is not dampened, may be skipped"
    for found, reason in ((1.0, why), (1.0, why), (0.0, why), (0.0, None), (1.0, None), (0.0, None)):
        set_gradients(params, others)
        mine.grad_scale = torch.ones((), device=cuda_device)
        mine.found_inf = torch.full((1,), found, device=cuda_device)
        assert decisions(mine.step) == [reason]
        if not found:
            theirs.step()
        torch.testing.assert_close(masters(mine, params) if extra else params, others, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_a_skipped_step_keeps_what_a_user_set(found: float, cuda_device: torch.device) -> None:
    params = parameters([40], torch.bfloat16, cuda_device)
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
    # No gradient: the master is the value set, or one step of the learning rate from it.
    distance = (master(mine, params[0]) - 0.5).abs().max().item()
    assert distance == 0 if found else 0 < distance < 0.01


# The options that a kernel reads on the device if they are passed there.
NUMBERS: dict[str, tuple[str, ...]] = {
    "adam": ("lr", "betas", "eps", "weight_decay"),
    "nesterov": ("lr", "momentum", "dampening", "weight_decay"),
}


def numbers_of(group: Options, name: str) -> list[float]:
    listed = [group[key] for key in NUMBERS[name]]
    return [n for value in listed for n in (value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("name", NUMBERS)
def test_options_that_are_read_on_the_device(name: str, cuda_device: torch.device) -> None:
    params = parameters([300, 5], torch.float64, cuda_device)
    run = Beside(CASES[name], params, {}, native={"capturable": True} if name == "adam" else {})
    mine, theirs = run.mine, run.theirs
    call = getattr(_dispatch.native(params[0]), {"adam": "adam_step", "nesterov": "sgd_step"}[name])
    group, row = mine.param_groups[0], torch.empty(5 if name == "adam" else 4, dtype=torch.float64)
    said = {"lr": 0.5, "eps": 0.25, "weight_decay": 0.125, "betas": (0.5, 0.75)}
    said |= {"momentum": 0.5, "dampening": 0.0}  # Nesterov requires zero dampening
    run.train(1)  # creates the state
    for _ in range(3):
        set_gradients(params, run.others)
        theirs.param_groups[0].update({key: said[key] for key in NUMBERS[name]})
        row.copy_(torch.tensor(numbers_of(theirs.param_groups[0], name), dtype=torch.float64))
        on_device = row.to(cuda_device)
        assert type(call(group, mine.state, match_layout, None, None, False, False, on_device)) is list
        theirs.step()
    run.check()
    for wrong in (on_device[1:], on_device.float()):
        assert "not a row of" in call(group, mine.state, match_layout, None, None, False, False, wrong)
    other = optim.RMSprop(params)
    why = _dispatch.native(params[0]).rmsprop_step(
        *(other.param_groups[0], other.state, match_layout, None, None, False, False, on_device)
    )
    assert "reads no options on the device" in why


def as_misaligned(t: Tensor, elements: int) -> Tensor:
    """A copy of `t` that starts that many elements after a boundary."""
    return torch.empty(elements + t.numel(), dtype=t.dtype, device=t.device)[elements:].copy_(t)


@pytest.mark.parametrize(
    ("dtype", "extra", "state_ahead"),
    [*((torch.float32, {}, n) for n in (0, 1)), *((torch.bfloat16, MASTERS, n) for n in (0, 0.5, 1))],
    ids=str,
)
@every_case
def test_bitwise_the_same_wherever_an_element_is(
    case: Case, dtype: torch.dtype, extra: Options, state_ahead: float, cuda_device: torch.device
) -> None:
    """At another alignment, in another tensor, next to others: the same bits.

    Relative to a boundary the state starts at as many elements as the parameter (whole packs of all can be
    read), half as many (as many bytes for 16-bit parameters: they cannot) or none.
    """
    n = 2 * 4096 + 5
    start = torch.randn(n).to(dtype)
    grads = [torch.randn(n).to(dtype) for _ in range(3)]
    results: list[Tensor] = []
    for offset, pieces in ((0, [n]), (1, [n]), (4, [n]), (2, [3, 4096, 1, n - 4100])):
        memory = torch.zeros(n + offset, dtype=dtype, device=cuda_device)
        params = [nn.Parameter(part) for part in memory[offset:].copy_(start).split(pieces)]
        mine = case.ours(params, **{**case.options, "lr": 0.01}, **extra)
        for grad in grads:
            for p, part in zip(params, grad.to(cuda_device).split(pieces), strict=True):
                ahead = p.data_ptr() % 16 // p.element_size()
                p.grad = as_misaligned(part, ahead if extra or state_ahead else 0)
                for key, state in mine.state[p].items():
                    if key != "step":
                        mine.state[p][key] = as_misaligned(state, int(state_ahead * ahead))
            step_natively(mine)
        kept = masters(mine, params) if extra else []
        results.append(torch.cat([t.detach().float() for t in (*params, *kept)]).cpu())
        assert not memory[:offset].any()
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_an_lr_that_kernels_cannot_read_is_left_to_torch(emulated_cuda: Emulation) -> None:
    params = parameters([4])
    mine = optim.Adam(params, lr=torch.tensor(0.1, dtype=torch.float16), capturable=True)
    params[0].grad = torch.ones(4)
    seen: list[str | None] = []
    with (
        _dispatch.recording(lambda decision: seen.append(decision.reason)),
        pytest.raises((AssertionError, RuntimeError)),  # torch's: capturable needs an accelerator
    ):
        mine.step()
    assert seen == ["lr is a tensor, but not one number of float32 or float64"]


@pytest.mark.cuda
@with_and_without_masters
@pytest.mark.parametrize("name", CAPTURABLE)
def test_a_cuda_graph_gives_the_same(name: str, dtype: torch.dtype, extra: Options) -> None:
    params = parameters([300, 5], dtype, "cuda")
    others = twins(params)
    case, options = CASES[name], {**CASES[name].options, **extra, "lr": 0.01, **CAPTURABLE[name]}
    mine, eager = case.ours(params, **options), case.ours(others, **options)
    set_gradients(params, others)
    step_natively(mine)
    step_natively(eager)

    def step() -> list[Tensor]:
        step_natively(mine)
        return []

    replayed(step, times=3)
    for _ in range(3):
        step_natively(eager)
    assert_same(params, others)
    if extra:
        assert_same(masters(mine, params), masters(eager, others))


@pytest.mark.cuda
@every_case
def test_without_the_module_torch_continues(case: Case) -> None:
    params = parameters([300, 5], torch.bfloat16, "cuda")
    run = Beside(case, params, MASTERS)
    for _ in range(3):
        set_gradients(params, run.others)
        with fastnn.disabled():
            run.mine.step()
            run.theirs.step()
    run.check()
