"""What every optimizer leaves to torch; and under `fused=True` what torch's fused kernels would get wrong."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from fastnn import optim
from optimizer_cases import (
    CASES,
    FUSED,
    MASTERS,
    Case,
    Options,
    decisions,
    every_case,
    every_fused,
    needs_native,
    of_cases,
    parameters,
    set_gradients,
)

LEAVING_SPARSE = {name: CASES[name] for name in ("sgd", "adagrad")}


class _Subclass(Tensor):
    pass


def _overlapping() -> list[Any]:
    memory = torch.randn(6)
    return [nn.Parameter(memory), nn.Parameter(memory[2:])]


LEFT_TO_TORCH: dict[str, tuple[Callable[[], list[Any]], Options, str]] = {
    "complex": (lambda: [nn.Parameter(torch.randn(4, dtype=torch.complex64))], {}, "dtype"),
    "gaps": (lambda: [nn.Parameter(torch.randn(4, 6)[:, ::2])], {}, "one block"),
    "shared memory": (_overlapping, {}, "share memory"),
    "differentiable": (lambda: [torch.randn(4)], {"differentiable": True}, "differentiable"),
    "subclass": (lambda: [torch.randn(4).as_subclass(_Subclass)], {}, "subclass"),
}


@needs_native
@pytest.mark.parametrize("left", LEFT_TO_TORCH)
@every_case
def test_what_is_not_covered(case: Case, left: str, device: torch.device) -> None:
    if device.type == "cuda" and left == "shared memory":
        pytest.skip("torch updates all elements at once, in no order")
    make, options, reason = LEFT_TO_TORCH[left]
    options = {**options, **case.options, "lr": 0.1}
    made = []
    for _ in range(2):
        torch.manual_seed(1)
        with device:
            made.append(make())
    params, twin = made
    mine, theirs = case.ours(params, **options), case.torchs(twin, **options)
    for _ in range(3):
        for p, q in zip(params, twin, strict=True):
            p.grad = torch.randn_like(p).detach()
            q.grad = p.grad.clone()
        (why,) = decisions(mine.step)
        assert why is not None
        assert reason in why
        theirs.step()
    for p, q in zip(params, twin, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0, equal_nan=True)
        assert mine.state[p].keys() == theirs.state[q].keys()


@needs_native
def test_a_negative_step_is_an_error_as_in_torch() -> None:
    for kind in (torch.optim.Adam, optim.Adam):
        params = parameters([3], torch.float32)
        optimizer = kind(params)
        set_gradients(params)
        optimizer.step()
        optimizer.state[params[0]]["step"].fill_(-1)
        before = params[0].detach().clone()
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
        assert torch.equal(params[0], before)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own
@of_cases(LEAVING_SPARSE)
def test_sparse_gradients(case: Case) -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    mine, theirs = case.ours([p], lr=0.1), case.torchs([q], lr=0.1)
    for _ in range(2):
        p.grad = q.grad = torch.tensor([0.0, 2.0, 3.0]).to_sparse()
        (why,) = decisions(mine.step)
        assert why is not None
        theirs.step()
    assert torch.equal(p, q)


@needs_native
@every_case
def test_lazily_negated_gradient(case: Case) -> None:
    p, q = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
    p.grad, q.grad = torch.tensor(1 + 2j).conj().imag, torch.tensor(-2.0)
    assert p.grad.is_neg()
    assert decisions(case.ours([p], **case.options).step) == ["the tensor is a lazily negated view"]
    case.torchs([q], **case.options).step()
    assert torch.equal(p, q)


@needs_native
@every_case
def test_one_group_falls_back_alone(case: Case, device: torch.device) -> None:
    native, left = parameters([5], device=device), [nn.Parameter(torch.randn(4, 6, device=device)[:, ::2])]
    set_gradients(native + left)
    first, second = decisions(case.ours([{"params": native}, {"params": left}], **case.options).step)
    assert first is None
    assert second is not None


@needs_native
@every_case
def test_disabled_gives_what_torch_gives(case: Case, device: torch.device) -> None:
    params = parameters([(5, 6), (7,)], device=device)
    twin = copy.deepcopy(params)
    mine, theirs = case.ours(params, **case.options), case.torchs(twin, **case.options)
    for _ in range(3):
        set_gradients(params, twin)
        with fastnn.disabled():
            assert decisions(mine.step) == ["fastnn is disabled"]
        theirs.step()
    assert all(torch.equal(p, q) for p, q in zip(params, twin, strict=True))


MARK = 7.0  # the value between the elements


def _columns(memory: Tensor) -> Tensor:
    return memory[:24].view(4, 6)[:, ::2]


def _as_strided(memory: Tensor) -> Tensor:
    return memory.as_strided((4, 3), (2, 9), 1)


def _transposed(memory: Tensor) -> Tensor:
    return memory[:12].view(3, 4).t()


def _plain(memory: Tensor) -> Tensor:
    return memory[:12].view(4, 3)


def _negated(grad: Tensor) -> Tensor:
    return torch.complex(torch.zeros_like(grad), -grad).conj().imag


def _turned(grad: Tensor) -> Tensor:
    return grad.t().contiguous().t()


def _with_gaps(grad: Tensor) -> Tensor:
    return torch.stack([grad, torch.full_like(grad, MARK)], -1)[..., 0]


LAYOUTS = [_plain, _transposed, _columns, _as_strided]
GRADIENTS = [torch.clone, _turned, _with_gaps, _negated]


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("scaled", [None, 0.0, 1.0])
@pytest.mark.parametrize("make_grad", GRADIENTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@every_fused
def test_any_layout_under_fused(
    case: Case,
    layout: Callable[[Tensor], Tensor],
    make_grad: Callable[[Tensor], Tensor],
    scaled: float | None,
    disabled: bool,
) -> None:
    """Like torch's optimizer on one block of memory, and nothing between the elements is written.

    `scaled` is the found_inf of a GradScaler, if there is one.
    """
    memory = torch.full((40,), MARK)
    p = nn.Parameter(layout(memory))
    q = nn.Parameter(torch.randn(p.shape))
    p.data.copy_(q)
    options = {**case.options, "lr": 0.1}
    mine, theirs = case.ours([p], fused=True, **options), case.torchs([q], **options)
    for _ in range(3):
        grad = torch.randn(p.shape)
        q.grad = grad.clone()
        p.grad = make_grad(grad if scaled is None else 8 * grad)
        if scaled is not None:
            mine.grad_scale, mine.found_inf = torch.tensor(8.0), torch.tensor(scaled)
        with fastnn.disabled() if disabled else contextlib.nullcontext():
            mine.step()
        if not scaled:
            theirs.step()
            torch.testing.assert_close(p.grad, q.grad)
    torch.testing.assert_close(p.data, q.data)
    if not scaled:
        torch.testing.assert_close(mine.state[p], theirs.state[q])
    between = torch.ones(40, dtype=torch.bool)
    layout(between).zero_()
    assert (memory[between] == MARK).all()


@of_cases({name: case for name, case in FUSED.items() if name != "sgd"})
def test_state_of_other_strides_under_fused(case: Case) -> None:
    """As a checkpoint may contain it."""
    p = nn.Parameter(torch.randn(4, 3))
    q = nn.Parameter(p.detach().clone())
    options = {**case.options, "lr": 0.1}
    mine, theirs = case.ours([p], fused=True, **options), case.torchs([q], **options)
    for _ in range(3):
        set_gradients([p], [q])
        mine.step()
        theirs.step()
        for key, value in mine.state[p].items():
            if value.dim() == 2:
                mine.state[p][key] = _turned(value)
    torch.testing.assert_close(p.data, q.data)


@every_fused
def test_float32_masters_under_fused(case: Case) -> None:
    memory = torch.full((40,), MARK, dtype=torch.bfloat16)
    p = nn.Parameter(_columns(memory))
    q = nn.Parameter(torch.randn(4, 3).bfloat16().float())
    p.data.copy_(q)
    options = {**case.options, "lr": 0.1}
    mine, theirs = case.ours([p], fused=True, **MASTERS, **options), case.torchs([q], **options)
    for _ in range(3):
        p.grad = _with_gaps(torch.randn(4, 3).bfloat16())
        q.grad = p.grad.float()
        mine.step()
        theirs.step()
    torch.testing.assert_close(p.data, q.data.bfloat16())
    assert (memory[:24].view(4, 6)[:, 1::2] == MARK).all()
    assert (memory[24:] == MARK).all()


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("options", [{"dampening": 0.3}, {"nesterov": True}], ids=str)
def test_sgds_momentum_begins_with_the_first_step_that_is_taken(options: Options, disabled: bool) -> None:
    """And with each parameter's own first step, though torch's fused function creates all buffers at once."""
    params = parameters([3, 4])
    twin = copy.deepcopy(params)
    options = {"lr": 0.1, "momentum": 0.9, **options}
    mine, theirs = optim.SGD(params, fused=True, **options), torch.optim.SGD(twin, **options)
    for found, count in ((1.0, 2), (0.0, 1), (0.0, 2), (1.0, 2), (0.0, 2)):
        set_gradients(params[:count], twin[:count])
        mine.grad_scale, mine.found_inf = torch.tensor(1.0), torch.tensor(found)
        with fastnn.disabled() if disabled else contextlib.nullcontext():
            mine.step()
        if not found:
            theirs.step()
        mine.zero_grad()
        theirs.zero_grad()
    torch.testing.assert_close(params, twin)


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_fused_and_capturable_with_gaps(kind: str) -> None:
    """On the CPU only torch's fused functions take the option, and they would write between the elements."""
    p = nn.Parameter(torch.randn(4, 6)[:, ::2])
    q = nn.Parameter(p.detach().clone())
    mine = fastnn.convert(getattr(torch.optim, kind)([p], lr=0.1, fused=True, capturable=True))
    theirs = getattr(torch.optim, kind)([q], lr=0.1)
    for _ in range(3):
        p.grad, q.grad = torch.ones(4, 3), torch.ones(4, 3)
        mine.step()
        theirs.step()
    torch.testing.assert_close(p, q)
