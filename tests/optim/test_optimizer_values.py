"""The values of every optimizer: against float64, and against torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from every_kernel import assert_reproducible, emulating
from fastnn import optim
from optimizer_cases import (
    CASES,
    DTYPES,
    KINDS,
    MASTERS,
    SIZES,
    Case,
    Kind,
    Options,
    every_case,
    every_kind,
    masters,
    needs_native,
    of_cases,
    parameters,
    set_gradients,
    step_natively,
    twins,
)

pytestmark = needs_native


def flat(tensors: list[Any]) -> Tensor:
    """All elements, in float64 on the CPU."""
    return torch.cat([t.detach().cpu().double().flatten() for t in tensors])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_kind
def test_against_float64(every_device: torch.device, kind: Kind, dtype: torch.dtype) -> None:
    stored, computed = torch.finfo(dtype), torch.finfo(torch.promote_types(dtype, torch.float32))
    # The last term is for the store.
    bound = {"rtol": stored.eps, "atol": kind.roundings * computed.eps + stored.smallest_normal * stored.eps}
    for choice in kind.options:
        options = {**choice, **kind.eps, "lr": 0.1}
        params = parameters(SIZES, dtype, every_device)
        optimizer = kind.ours(params, **options)
        start = options.get("initial_accumulator_value", 0)
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg")
        state = dict.fromkeys(names, flat(params) * 0) | {"sum": flat(params) * 0 + start}
        for step in range(1, 5):
            set_gradients(params)
            old, grads = flat(params), flat([p.grad for p in params])
            step_natively(optimizer)
            new = kind.rule(old, -grads if options["maximize"] else grads, state, step, options)
            torch.testing.assert_close(flat(params), new, **bound)
            for key in optimizer.state[params[1]].keys() - {"step"}:
                mine = flat([optimizer.state[p][key] for p in params])
                torch.testing.assert_close(mine, state[key], **bound)
                # Stored state is rounded to the parameter's dtype: the next step starts from there.
                state[key] = mine


CHOICES = [
    pytest.param(kind, options, id=f"{name}-{options}")
    for name, kind in KINDS.items()
    for options in kind.options
]


@pytest.mark.parametrize(("kind", "options"), CHOICES)
def test_many_steps_equal_torch(kind: Kind, options: Options, device: torch.device) -> None:
    params = parameters([(13, 21), (3,), 40], torch.float64, device)
    twin = copy.deepcopy(params)
    options = {**options, **kind.eps, "lr": 3e-3}
    mine, theirs = kind.ours(params, **options), kind.torchs(twin, **options)
    for _ in range(20 if emulating() or device.type == "cuda" else 200):
        set_gradients(params, twin)
        step_natively(mine)
        theirs.step()
    eps = torch.finfo(torch.float64).eps
    for p, q in zip(params, twin, strict=True):
        # Some eps of values up to 100 (buffers of 1 / (1 - 0.9) quotients of 10) every step.
        torch.testing.assert_close(p, q, rtol=0, atol=200 * 100 * eps)
        torch.testing.assert_close(mine.state[p], theirs.state[q], rtol=1e-11, atol=200 * 100 * eps)


KEPT = [*((dtype, {}) for dtype in DTYPES), (torch.bfloat16, MASTERS)]


@pytest.mark.parametrize(("dtype", "extra"), KEPT, ids=str)
@every_case
def test_the_same_bits_every_time(
    case: Case, dtype: torch.dtype, extra: Options, every_device: torch.device
) -> None:
    shapes = [400, 3, 1025, 0, 999] if emulating() else [40_000, 3, 1025, 0, 9_999]

    def run() -> list[Tensor]:
        torch.manual_seed(1)
        params = parameters(shapes, dtype, every_device)
        optimizer = case.ours(params, **{**case.options, "lr": 0.1}, **extra)
        for _ in range(3):
            set_gradients(params)
            step_natively(optimizer)
        return [p.detach() for p in params] + (masters(optimizer, params) if extra else [])

    assert_reproducible(run, every_device)


@pytest.mark.each_value
@every_kind
def test_ten_thousand_small_parameters(kind: Kind, device: torch.device) -> None:
    params = parameters([(i % 7,) for i in range(2_000 if emulating() else 10_000)], device=device)
    twin = twins(params)
    mine, theirs = kind.ours(params, lr=0.5), kind.torchs(twin, lr=0.5)
    set_gradients(params, twin)
    step_natively(mine)
    theirs.step()
    torch.testing.assert_close(torch.cat(params), torch.cat(twin), rtol=1e-6, atol=1e-6)


@every_kind
def test_nan_and_infinity_go_where_torch_sends_them(every_device: torch.device, kind: Kind) -> None:
    inf, nan = float("inf"), float("nan")
    special = torch.tensor([0.0, 1.0, -1.0, inf, -inf, nan, 1e30, 1e-45], device=every_device)
    start, grads = torch.cartesian_prod(special, special).unbind(1)
    close = {"rtol": 1e-5, "atol": 1e-6, "equal_nan": True}
    for options in kind.for_nan:
        p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        mine, theirs = kind.ours([p], lr=0.1, **options), kind.torchs([q], lr=0.1, **options)
        for grad in (grads, torch.ones_like(grads), grads.flip(0)):
            p.grad, q.grad = grad.clone(), grad.clone()
            step_natively(mine)
            theirs.step()
            torch.testing.assert_close(p, q, **close)
            for key, value in theirs.state[q].items():
                torch.testing.assert_close(mine.state[p][key], value, **close)


COUNTING = {name: case for name, case in CASES.items() if case.ours is not optim.SGD}


@pytest.mark.parametrize("step_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0.0, 1e5, 2.0**24, 1e12])
@of_cases(COUNTING)
def test_huge_step_counts(case: Case, step: float, step_dtype: torch.dtype, device: torch.device) -> None:
    p, q = (nn.Parameter(torch.ones(5, device=device)) for _ in range(2))
    options = {**case.options, "lr": 0.1}
    mine, theirs = case.ours([p], **options), case.torchs([q], **options)
    for optimizer, parameter in ((mine, p), (theirs, q)):
        parameter.grad = torch.arange(5.0, device=device)
        optimizer.step()
        optimizer.state[parameter]["step"] = torch.tensor(step, dtype=step_dtype)
    step_natively(mine)
    theirs.step()
    assert mine.state[p]["step"] == theirs.state[q]["step"]
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
