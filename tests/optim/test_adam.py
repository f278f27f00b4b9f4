"""Adam and AdamW: values on every CPU variant, options, layouts, fallback."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from every_kernel import assert_reproducible, emulating
from fastnn import _dispatch, optim

needs_native = pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")
PAIRS = [(optim.Adam, torch.optim.Adam), (optim.AdamW, torch.optim.AdamW)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Around the widths of vectors (4 to 16 lanes) and of the chunks that work is cut into.
SIZES = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 1023, 1024, 1025, 5000]


def decisions(run: Callable[[], Any]) -> list[str | None]:
    """The reasons (None: native) of the Adam updates in `run`."""
    seen: list[str | None] = []
    with _dispatch.recording(lambda decision: seen.append(decision.reason)):
        run()
    return seen


def step_natively(optimizer: torch.optim.Optimizer) -> None:
    assert set(decisions(optimizer.step)) == {None}


def parameters(
    shapes: list[Any], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype).to(device)) for shape in shapes]


def set_gradients(*copies: list[nn.Parameter]) -> None:
    """The same new random gradients for each copy of a list of parameters."""
    for twins in zip(*copies, strict=True):
        grad = torch.randn(twins[0].shape, dtype=torch.float64)
        for p in twins:
            p.grad = grad.to(p.dtype).to(p.device)


def flat(tensors: list[Any]) -> Tensor:
    """All elements, in float64 on the CPU."""
    return torch.cat([t.detach().cpu().double().flatten() for t in tensors])


def reference_step(
    p: Tensor, g: Tensor, state: dict[str, Tensor], step: int, options: dict[str, Any], decoupled: bool
) -> Tensor:
    """The update rule, written out once more in float64."""
    beta1, beta2 = options.get("betas", (0.9, 0.999))
    lr, decay = options["lr"], options.get("weight_decay", 0.01 if decoupled else 0)
    if options.get("maximize"):
        g = -g
    if decoupled:
        p = p * (1 - lr * decay)
    else:
        g = g + decay * p
    state["m"] = beta1 * state["m"] + (1 - beta1) * g
    state["v"] = beta2 * state["v"] + (1 - beta2) * g * g
    state["vmax"] = torch.maximum(state["vmax"], state["v"])
    v = state["vmax"] if options.get("amsgrad") else state["v"]
    return p - lr / (1 - beta1**step) * state["m"] / (
        v.sqrt() / (1 - beta2**step) ** 0.5 + options.get("eps", 1e-8)
    )


OPTIONS: list[dict[str, Any]] = [
    {"amsgrad": amsgrad, "maximize": maximize, "weight_decay": decay, "betas": betas}
    for amsgrad, maximize, decay, betas in itertools.product(
        (False, True), (False, True), (0.0, 0.1), ((0.9, 0.999), (0.3, 0.9))
    )
]


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cls", [optim.Adam, optim.AdamW])
def test_values_against_float64(
    every_device: torch.device, cls: type[optim.Adam], dtype: torch.dtype
) -> None:
    stored, computed = torch.finfo(dtype), torch.finfo(torch.promote_types(dtype, torch.float32))
    # About ten roundings of half an eps in the arithmetic, of values up to 5, and the one of the store.
    bound = {"rtol": stored.eps, "atol": 25 * computed.eps + stored.smallest_normal * stored.eps}
    for options in OPTIONS:
        # A large eps keeps the quotient well conditioned: errors of the moments grow at most 1 / eps-fold.
        options = {**options, "lr": 0.1, "eps": 0.1}
        params = parameters(SIZES, dtype, every_device)
        optimizer = cls(params, **options)
        kept = {"m": "exp_avg", "v": "exp_avg_sq"}
        if options["amsgrad"]:
            kept["vmax"] = "max_exp_avg_sq"
        state = {name: flat([p.detach() * 0 for p in params]) for name in ("m", "v", "vmax")}
        for step in range(1, 6):
            set_gradients(params)
            old, grads = flat(params), flat([p.grad for p in params])
            step_natively(optimizer)
            new = reference_step(old, grads, state, step, options, cls is optim.AdamW)
            torch.testing.assert_close(flat(params), new, **bound)
            for name, key in kept.items():
                mine = flat([optimizer.state[p][key] for p in params])
                torch.testing.assert_close(mine, state[name], **bound)
                # What is stored is rounded to the parameter's dtype: the next step starts from there.
                state[name] = mine


@needs_native
@pytest.mark.parametrize(("cls", "reference"), PAIRS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_many_steps_equal_torch(
    cls: Any, reference: Any, options: dict[str, Any], device: torch.device
) -> None:
    model = nn.Sequential(nn.Linear(13, 21), nn.Tanh(), nn.Linear(21, 3)).double().to(device)
    twin = copy.deepcopy(model)
    x, y = torch.randn(32, 13).double().to(device), torch.randn(32, 3).double().to(device)
    # With a large eps training does not amplify what the two round differently.
    options = {**options, "lr": 3e-3, "eps": 1e-3}
    mine, theirs = cls(model.parameters(), **options), reference(twin.parameters(), **options)
    for _ in range(20 if emulating() or device.type == "cuda" else 200):
        for net, optimizer in ((model, mine), (twin, theirs)):
            optimizer.zero_grad()
            (net(x) - y).tanh().square().mean().backward()
        step_natively(mine)
        theirs.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        eps = torch.finfo(torch.float64).eps
        # An eps of the gradient's size every step, at most 1 / 1e-3-fold in the parameter.
        torch.testing.assert_close(p, q, rtol=0, atol=200 * eps / 1e-3)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_every_time(dtype: torch.dtype, every_device: torch.device) -> None:
    shapes = [400, 3, 1025, 0, 999] if emulating() else [40_000, 3, 1025, 0, 9_999]

    def run() -> list[Tensor]:
        torch.manual_seed(1)
        params = parameters(shapes, dtype, every_device)
        optimizer = optim.AdamW(params, lr=0.1, amsgrad=True)
        for _ in range(3):
            set_gradients(params)
            step_natively(optimizer)
        return [p.detach() for p in params]

    assert_reproducible(run, every_device)


@needs_native
def test_ten_thousand_small_parameters(device: torch.device) -> None:
    params = parameters([(i % 7,) for i in range(2_000 if emulating() else 10_000)], device=device)
    set_gradients(params)
    before = torch.cat([p.detach().clone() for p in params])
    optimizer = optim.Adam(params, lr=0.5, eps=0)
    step_natively(optimizer)
    grads = torch.cat([p.grad for p in params if p.grad is not None])
    # The first step goes lr along the sign of the gradient.
    torch.testing.assert_close(torch.cat(params), before - 0.5 * grads.sign(), rtol=1e-6, atol=1e-6)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_views_that_are_not_aligned(every_device: torch.device, dtype: torch.dtype) -> None:
    for offset, size in itertools.product((1, 3), (1, 17, 100)):
        params = [nn.Parameter(torch.randn(size + offset).to(dtype).to(every_device)[offset:])]
        twin = [nn.Parameter(params[0].detach().clone())]
        mine, theirs = optim.Adam(params, lr=0.1), optim.Adam(twin, lr=0.1)
        for _ in range(3):
            grad = torch.randn(size + offset).to(dtype).to(every_device)[offset:]
            params[0].grad, twin[0].grad = grad, grad.clone()
            step_natively(mine)
            step_natively(theirs)
        assert torch.equal(params[0], twin[0])


@needs_native
@pytest.mark.parametrize("matching", [True, False])
def test_transposed_parameters(every_device: torch.device, matching: bool) -> None:
    params = [
        nn.Parameter(torch.randn(30, 40, device=every_device).t()),
        nn.Parameter(torch.randn(2, 3, 4, 5, device=every_device).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(4, 1, 6, device=every_device).permute(2, 1, 0)),
    ]
    twin = copy.deepcopy(params)
    mine, theirs = optim.Adam(params, lr=0.1, amsgrad=True), torch.optim.Adam(twin, lr=0.1, amsgrad=True)
    for _ in range(3):
        set_gradients(params, twin)
        if matching:
            for p in params:
                p.grad = torch.empty_like(p).copy_(p.grad)
        step_natively(mine)
        theirs.step()
    torch.testing.assert_close(params, twin, rtol=1e-5, atol=1e-6)
    for p in params:
        assert mine.state[p]["exp_avg"].stride() == p.stride()


@needs_native
def test_expanded_gradient(every_device: torch.device) -> None:
    p, q = (nn.Parameter(torch.zeros(3, 4, device=every_device)) for _ in range(2))
    p.grad = torch.tensor(2.0, device=every_device).expand(3, 4)
    q.grad = torch.full_like(q, 2.0)
    step_natively(optim.Adam([p]))
    step_natively(optim.Adam([q]))
    assert torch.equal(p, q)


@needs_native
def test_nothing_but_none_empty_and_zero_dimensional(every_device: torch.device) -> None:
    without, empty, scalar = parameters([(3,), (0, 4), ()], device=every_device)
    before = without.detach().clone()
    empty.grad, scalar.grad = torch.zeros_like(empty), torch.full_like(scalar, 2.0)
    optimizer = optim.Adam([without, empty, scalar], lr=0.5)
    start = scalar.item()
    step_natively(optimizer)
    assert torch.equal(without, before)
    assert without not in optimizer.state
    assert optimizer.state[empty]["step"] == 1
    assert scalar.item() == pytest.approx(start - 0.5)


@needs_native
def test_each_parameter_has_its_own_step_and_dtype(every_device: torch.device) -> None:
    params = [
        *parameters([7, 8], device=every_device),
        *parameters([9], torch.float64, every_device),
        *parameters([9], torch.bfloat16, every_device),
    ]
    twin = copy.deepcopy(params)
    mine, theirs = optim.Adam(params, lr=0.1), torch.optim.Adam(twin, lr=0.1, fused=True)
    for present in ((0, 2), (0, 1, 2, 3), (1, 3), (0, 1, 2)):
        for i, (p, q) in enumerate(zip(params, twin, strict=True)):
            p.grad = torch.randn(p.shape).to(p.dtype).to(p.device) if i in present else None
            q.grad = p.grad
        step_natively(mine)
        theirs.step()
    assert [mine.state[p]["step"].item() for p in params] == [3, 3, 3, 2]
    for p, q in zip(params, twin, strict=True):
        eps = torch.finfo(p.dtype).eps
        torch.testing.assert_close(p, q, rtol=10 * eps, atol=10 * eps)


@needs_native
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.3, 0.5), (0.0, 0.0)])
def test_nan_and_infinity_go_where_torch_sends_them(
    every_device: torch.device, amsgrad: bool, betas: tuple[float, float]
) -> None:
    inf, nan = float("inf"), float("nan")
    special = torch.tensor([0.0, 1.0, -1.0, inf, -inf, nan, 1e30, 1e-45], device=every_device)
    start, grads = torch.cartesian_prod(special, special).unbind(1)
    for cls, reference in PAIRS:
        for eps, decay in ((1e-8, 0.0), (0.0, 0.0), (1e-8, 0.1)):
            options = {"betas": betas, "amsgrad": amsgrad, "eps": eps, "weight_decay": decay, "lr": 0.1}
            p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
            mine, theirs = cls([p], **options), reference([q], **options)
            for grad in (grads, torch.ones_like(grads), grads.flip(0)):
                p.grad, q.grad = grad.clone(), grad.clone()
                step_natively(mine)
                theirs.step()
                torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, equal_nan=True)
                for key in ("exp_avg", "exp_avg_sq"):
                    a, b = mine.state[p][key], theirs.state[q][key]
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


@needs_native
@pytest.mark.parametrize("step_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0.0, 1e5, 2.0**24, 1e12])
def test_huge_step_counts(step: float, step_dtype: torch.dtype, device: torch.device) -> None:
    p, q = (nn.Parameter(torch.ones(5, device=device)) for _ in range(2))
    mine, theirs = optim.Adam([p], lr=0.1), torch.optim.Adam([q], lr=0.1)
    for optimizer, parameter in ((mine, p), (theirs, q)):
        parameter.grad = torch.arange(5.0, device=device)
        optimizer.step()
        optimizer.state[parameter]["step"] = torch.tensor(step, dtype=step_dtype)
    step_natively(mine)
    theirs.step()
    assert mine.state[p]["step"] == theirs.state[q]["step"]
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@needs_native
def test_what_is_written_is_seen_by_autograd(device: torch.device) -> None:
    p = nn.Parameter(torch.ones(3, device=device))
    p.grad = torch.ones_like(p)
    optimizer = optim.Adam([p], amsgrad=True)
    optimizer.step()
    product = (p * torch.ones(3, device=device, requires_grad=True)).sum()
    versions = {key: value._version for key, value in optimizer.state[p].items()}
    step_natively(optimizer)
    assert all(value._version > versions[key] for key, value in optimizer.state[p].items())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


class _Subclass(Tensor):
    pass


def _overlapping() -> list[nn.Parameter]:
    memory = torch.randn(6)
    return [nn.Parameter(memory), nn.Parameter(memory[2:])]


FALLBACKS: dict[str, tuple[Callable[[], list[Any]], dict[str, Any], str]] = {
    "complex": (lambda: [nn.Parameter(torch.randn(4, dtype=torch.complex64))], {}, "dtype"),
    "gaps": (lambda: [nn.Parameter(torch.randn(4, 6)[:, ::2])], {}, "one block"),
    "shared memory": (_overlapping, {}, "share memory"),
    "differentiable": (lambda: [torch.randn(4)], {"differentiable": True}, "differentiable"),
    "subclass": (lambda: [torch.randn(4).as_subclass(_Subclass)], {}, "subclass"),
}


@needs_native
@pytest.mark.parametrize("case", FALLBACKS)
def test_what_is_not_covered_is_left_to_torch(case: str, device: torch.device) -> None:
    if device.type == "cuda" and case == "shared memory":
        pytest.skip("torch updates all elements at once, in no order")
    make, options, reason = FALLBACKS[case]
    torch.manual_seed(1)
    with device:
        params = make()
    torch.manual_seed(1)
    with device:
        twin = make()
    mine, theirs = optim.Adam(params, lr=0.1, **options), torch.optim.Adam(twin, lr=0.1, **options)
    for _ in range(3):
        for p, q in zip(params, twin, strict=True):
            p.grad = torch.randn_like(p).detach()
            q.grad = p.grad.clone()
        (why,) = decisions(mine.step)
        assert why is not None
        assert reason in why
        theirs.step()
    for p, q in zip(params, twin, strict=True):
        assert torch.equal(p, q)


@needs_native
def test_lazily_negated_gradient() -> None:
    p, q = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
    p.grad = torch.tensor(1 + 2j).conj().imag
    q.grad = torch.tensor(-2.0)
    assert p.grad.is_neg()
    assert decisions(optim.Adam([p], lr=0.1).step) == ["the tensor is a lazily negated view"]
    torch.optim.Adam([q], lr=0.1).step()
    assert torch.equal(p, q)


@needs_native
def test_one_group_falls_back_alone(device: torch.device) -> None:
    native, left = parameters([5], device=device), [nn.Parameter(torch.randn(4, 6, device=device)[:, ::2])]
    set_gradients(native + left)
    first, second = decisions(optim.Adam([{"params": native}, {"params": left}]).step)
    assert first is None
    assert second is not None


@needs_native
def test_disabled_gives_what_torch_gives(device: torch.device) -> None:
    params = parameters([(5, 6), (7,)], device=device)
    twin = copy.deepcopy(params)
    mine, theirs = optim.AdamW(params), torch.optim.AdamW(twin)
    for _ in range(3):
        set_gradients(params, twin)
        with fastnn.disabled():
            assert decisions(mine.step) == ["fastnn is disabled"]
        theirs.step()
    assert all(torch.equal(p, q) for p, q in zip(params, twin, strict=True))
