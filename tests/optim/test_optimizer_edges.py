"""Every optimizer on unusual layouts, dtypes and states, with and without master weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastnn import _dispatch, optim
from optimizer_cases import (
    DTYPES,
    HALF,
    MASTERS,
    Beside,
    Case,
    Kind,
    Options,
    assert_same,
    every_case,
    every_kind,
    masters,
    needs_native,
    needs_state_begun_late,
    parameters,
    set_gradients,
    step_natively,
    with_and_without_masters,
)

pytestmark = needs_native


@pytest.mark.parametrize(
    ("dtype", "extra"), [*((dtype, {}) for dtype in DTYPES), *((half, MASTERS) for half in HALF)], ids=str
)
@every_case
def test_views_that_are_not_aligned(
    every_device: torch.device, case: Case, dtype: torch.dtype, extra: Options
) -> None:
    options = {**case.options, **extra, "lr": 0.1}
    for offset, size in itertools.product((1, 3), (1, 17, 100)):
        memory, grads = (torch.randn(size + offset).to(dtype).to(every_device) for _ in range(2))
        before = memory[:offset].clone()
        params = [nn.Parameter(memory[offset:])]
        others = [nn.Parameter(params[0].detach().clone())]
        mine, theirs = case.ours(params, **options), case.ours(others, **options)
        for _ in range(3):
            grads.copy_(torch.randn(size + offset))
            params[0].grad, others[0].grad = grads[offset:], grads[offset:].clone()
            step_natively(mine)
            step_natively(theirs)
        assert_same(params, others)
        if extra:
            assert_same(masters(mine, params), masters(theirs, others))
        assert torch.equal(memory[:offset], before)


@pytest.mark.parametrize("matching", [True, False])
@with_and_without_masters
@every_case
def test_transposed_parameters(
    every_device: torch.device, case: Case, dtype: torch.dtype, extra: Options, matching: bool
) -> None:
    params = [
        nn.Parameter(torch.randn(30, 40).to(every_device, dtype).t()),
        nn.Parameter(
            torch.randn(2, 3, 4, 5).to(every_device, dtype).contiguous(memory_format=torch.channels_last)
        ),
        nn.Parameter(torch.randn(4, 1, 6).to(every_device, dtype).permute(2, 1, 0)),
    ]
    run = Beside(case, params, extra, lr=0.1)
    for _ in range(3):
        set_gradients(params, run.others)
        if matching:
            for p in params:
                p.grad = torch.empty_like(p).copy_(p.grad)
        run.step()
    run.check()
    for p in params:
        assert all(value.stride() == p.stride() for key, value in run.mine.state[p].items() if key != "step")


@every_case
def test_expanded_gradient(every_device: torch.device, case: Case) -> None:
    p, q = (nn.Parameter(torch.zeros(3, 4, device=every_device)) for _ in range(2))
    p.grad = torch.tensor(2.0, device=every_device).expand(3, 4)
    q.grad = torch.full_like(q, 2.0)
    step_natively(case.ours([p], **case.options))
    step_natively(case.ours([q], **case.options))
    assert torch.equal(p, q)
    assert q.any()


@with_and_without_masters
@every_case
def test_none_empty_and_zero_dimensional(
    every_device: torch.device, case: Case, dtype: torch.dtype, extra: Options
) -> None:
    params = parameters([(3,), (0, 4), ()], dtype, every_device)
    before = params[0].detach().clone()
    run = Beside(case, params, extra, lr=0.5)
    for same in (params, run.others):
        same[1].grad, same[2].grad = torch.zeros_like(same[1]), torch.full_like(same[2], 2.0)
    run.step()
    assert torch.equal(params[0], before)
    assert "master_param" not in run.mine.state.get(params[0], {})
    torch.testing.assert_close(params, [q.detach().to(dtype) for q in run.others])
    made = run.mine.state.get(params[1], {}).keys() - {"master_param"}
    assert made == run.theirs.state[run.others[1]].keys()
    # The one left out starts when it gets a gradient, with its value at that time.
    params[0].data.fill_(7)
    run.others[0].data.fill_(7)
    run.train(1)
    run.check()
    step_natively(case.ours(parameters([3], dtype, every_device), **extra))  # no gradient at all


@every_case
def test_each_parameter_has_its_own_step_and_dtype(every_device: torch.device, case: Case) -> None:
    dtypes = [torch.float32, torch.float32, torch.float64, torch.bfloat16]
    params = [parameters([7 + i], dtype, every_device)[0] for i, dtype in enumerate(dtypes)]
    run = Beside(case, params, {}, lr=0.1)
    for present in ((0, 2), (0, 1, 2, 3), (1, 3), (0, 1, 2)):
        for each in (*params, *run.others):
            each.grad = None
        for i in present:
            set_gradients(params[i : i + 1], run.others[i : i + 1])
        run.step()
    # torch rounds every intermediate result of a bfloat16 update, of values up to about ten.
    run.check(30)
    if "step" in run.mine.state[params[0]]:
        assert [run.mine.state[p]["step"].item() for p in params] == [3, 3, 3, 2]


@with_and_without_masters
@every_case
def test_groups_and_parameters_that_come_later(
    every_device: torch.device, case: Case, dtype: torch.dtype, extra: Options
) -> None:
    needs_state_begun_late(case.torchs)
    params = parameters([5, 6], dtype, every_device)
    run = Beside(case, params[:1], extra, lr=0.1)
    run.train(1)
    later = Beside(case, params[1:], extra)
    for (optimizer, own), (_, added) in zip(run.both(), later.both(), strict=True):
        optimizer.add_param_group({"params": added, "lr": 0.2})
        own += added
    run.train(2)
    run.check()


@with_and_without_masters
@every_case
def test_what_is_written_is_seen_by_autograd(
    every_device: torch.device, case: Case, dtype: torch.dtype, extra: Options
) -> None:
    params = parameters([3], dtype, every_device)
    set_gradients(params)
    optimizer = case.ours(params, **extra, **case.options)
    step_natively(optimizer)
    product = (params[0] * torch.ones(3, dtype=dtype, device=every_device, requires_grad=True)).sum()
    written = [params[0], *optimizer.state[params[0]].values()]
    versions = [t._version for t in written]
    step_natively(optimizer)
    assert all(t._version > version for t, version in zip(written, versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_options_and_state_that_change_between_steps_are_seen() -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    mine, theirs = optim.Adam([p], lr=0.1), torch.optim.Adam([q], lr=0.1)
    extra, more = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

    def both(change: Callable[[Any, nn.Parameter], Any]) -> None:
        for optimizer, parameter in ((mine, p), (theirs, q)):
            change(optimizer, parameter)
            for each in optimizer.param_groups:
                for tensor in each["params"]:
                    tensor.grad = torch.arange(1.0, tensor.numel() + 1)
        step_natively(mine)
        theirs.step()

    both(lambda o, t: None)
    both(lambda o, t: o.state[t].update(exp_avg=torch.full((3,), 2.0)))
    both(lambda o, t: o.state[t].update(max_exp_avg_sq=torch.full((3,), 7.0)))
    both(lambda o, t: o.param_groups[0].update(amsgrad=True, lr=0.3, betas=[0.5, 0.6], eps=1e-2))
    both(lambda o, t: o.add_param_group({"params": [extra if o is mine else more], "lr": 0.2}))
    both(lambda o, t: o.state.pop(t))
    both(lambda o, t: setattr(t, "data", torch.full((3,), 4.0)))
    torch.testing.assert_close(p, q)
    torch.testing.assert_close(extra, more)


@every_kind
def test_state_that_is_dropped_begins_again(kind: Kind) -> None:
    needs_state_begun_late(kind.torchs)
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    for optimizer, parameter in ((kind.ours([p]), p), (kind.torchs([q]), q)):
        for _ in range(2):
            parameter.grad = torch.arange(1.0, 4.0)
            optimizer.step()
            optimizer.state.pop(parameter, None)
    torch.testing.assert_close(p, q)


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


def test_sgd_takes_a_momentum_buffer_of_none_for_missing() -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    for cls, parameter in ((optim.SGD, p), (torch.optim.SGD, q)):
        optimizer = cls([parameter], lr=0.1, momentum=0.9, dampening=0.5)
        optimizer.state[parameter]["momentum_buffer"] = None
        for _ in range(2):
            parameter.grad = torch.arange(3.0)
            optimizer.step()
    torch.testing.assert_close(p, q)


def test_sgd_makes_no_buffer_for_a_group_that_is_left_to_torch() -> None:
    memory = torch.randn(6)
    params = [nn.Parameter(memory), nn.Parameter(memory[2:])]
    optimizer = optim.SGD(params, momentum=0.9)
    for p in params:
        p.grad = torch.ones_like(p)
    left = _dispatch.cpu.sgd_step(optimizer.param_groups[0], optimizer.state, lambda *_: None)
    assert isinstance(left, str)
    assert not any(optimizer.state[p] for p in params)


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
@every_kind
def test_a_bool_as_an_option_does_what_torch_does(kind: Kind, option: str) -> None:
    """Some of torch's sums refuse it."""
    found = []
    for make in (kind.ours, kind.torchs):
        params = [nn.Parameter(torch.ones(3))]
        params[0].grad = torch.ones(3)
        optimizer = make(params, **{"lr": 0.1, option: True})
        try:
            optimizer.step()
            found.append(params[0].detach())
        except RuntimeError as error:
            found.append(str(error))
    if isinstance(found[1], str):
        assert found[0] == found[1]
    else:
        torch.testing.assert_close(*found)
