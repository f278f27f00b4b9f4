"""Optimizers on CUDA, on a GPU where there is one and emulated: what only a device has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captured import replayed
from cuda_emulation import Emulation
from fastnn import _dispatch, optim
from fastnn.optim._native import _match_layout

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")

OPTIONS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "adam": (optim.Adam, torch.optim.Adam, {"weight_decay": 0.1, "eps": 1e-3}),
    "amsgrad": (optim.Adam, torch.optim.Adam, {"amsgrad": True, "maximize": True, "eps": 1e-3}),
    "adamw": (optim.AdamW, torch.optim.AdamW, {"eps": 1e-3}),
    "sgd": (optim.SGD, torch.optim.SGD, {"weight_decay": 0.1}),
    "momentum": (optim.SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (optim.Adagrad, torch.optim.Adagrad, {"lr_decay": 0.1, "eps": 1e-3}),
    "rmsprop": (optim.RMSprop, torch.optim.RMSprop, {"eps": 1e-3}),
    "centered": (optim.RMSprop, torch.optim.RMSprop, {"centered": True, "momentum": 0.9, "eps": 0.1}),
}
every_optimizer = pytest.mark.parametrize("name", OPTIONS)
# An optimizer counts its steps on the device under these.
ON_DEVICE = {"adam": "fused", "amsgrad": "capturable", "adamw": "fused", "adagrad": "fused"} | dict.fromkeys(
    ("rmsprop", "centered"), "capturable"
)


def parameters(sizes: list[int], device: torch.device, dtype: torch.dtype = torch.float64) -> list[Any]:
    return [nn.Parameter(torch.randn(n, dtype=torch.float64).to(dtype).to(device)) for n in sizes]


def twins(params: list[Any]) -> list[Any]:
    """The same numbers in float64 on the CPU."""
    return [nn.Parameter(p.detach().cpu().double()) for p in params]


def set_gradients(params: list[Any], others: list[Any], scale: float = 1.0) -> None:
    for p, q in zip(params, others, strict=True):
        grad = torch.randn(p.shape, dtype=torch.float64).to(p.dtype)
        p.grad, q.grad = (grad * scale).to(p.device), grad.to(q.dtype)


def step_natively(optimizer: torch.optim.Optimizer) -> None:
    seen: list[str | None] = []
    with _dispatch.recording(lambda decision: seen.append(decision.reason)):
        optimizer.step()
    assert set(seen) == {None}


def assert_close(params: list[Any], others: list[Any], steps: int) -> None:
    """Some eps of numbers up to ten in every step, at most 1 / 1e-3-fold."""
    for p, q in zip(params, others, strict=True):
        bound = steps * 1e4 * torch.finfo(p.dtype).eps if p.dtype == torch.float64 else steps * 2e-5
        torch.testing.assert_close(p.detach().cpu().double(), q.detach(), rtol=bound, atol=bound)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_more_tensors_than_fit_one_launch(name: str, dtype: torch.dtype, cuda_device: torch.device) -> None:
    ours, reference, options = OPTIONS[name]
    sizes = [(7 * i) % 23 for i in range(150)] + [4096, 1]  # some are empty
    params = parameters(sizes, cuda_device, dtype)
    others = twins(params)
    mine, theirs = ours(params, lr=0.01, **options), reference(others, lr=0.01, **options)
    for _ in range(3):
        set_gradients(params, others)
        params[5].grad = others[5].grad = None
        step_natively(mine)
        theirs.step()
    assert_close(params, others, 3)


@every_optimizer
def test_one_launch_for_all_parameters(name: str, emulated_cuda: Emulation) -> None:
    ours, _, options = OPTIONS[name]
    params = parameters([50, 3, 1000, 7], torch.device("cpu"), torch.float32)
    mine = ours(params, lr=0.01, **options)
    for expected in (1, 1):
        set_gradients(params, params)
        before = emulated_cuda.checks.launches()
        step_natively(mine)
        assert emulated_cuda.checks.launches() - before == expected


@pytest.mark.parametrize("name", ON_DEVICE)
def test_steps_counted_on_the_device(name: str, cuda_device: torch.device) -> None:
    ours, reference, options = OPTIONS[name]
    params = parameters([300, 5, 0], cuda_device)
    others = twins(params)
    lr = torch.tensor(0.01, dtype=torch.float64, device=cuda_device)
    mine = ours(params, lr=lr, **options, **{ON_DEVICE[name]: True})
    theirs = reference(others, lr=0.01, **options)
    for step in range(1, 6):
        if step == 3:
            lr.fill_(0.005)  # the device's own number is read
            theirs.param_groups[0]["lr"] = 0.005
        set_gradients(params, others)
        if step == 2:
            params[1].grad = others[1].grad = None
        step_natively(mine)
        theirs.step()
        for p, q in zip(params, others, strict=True):
            assert mine.state[p]["step"].device == p.device
            assert mine.state[p]["step"].cpu() == theirs.state[q]["step"]
    assert_close(params, others, 5)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "momentum", "adagrad"])
def test_what_a_grad_scaler_leaves_to_the_optimizer(name: str, cuda_device: torch.device) -> None:
    ours, reference, options = OPTIONS[name]
    params = parameters([300, 5, 33], cuda_device, torch.float32)
    others = twins(params)
    mine = ours(params, lr=0.01, **options, fused=True)
    theirs = reference(others, lr=0.01, **options)
    scale = torch.full((), 1024.0, device=cuda_device)
    for step, found in enumerate((1.0, 0.0, 0.0, 1.0, 0.0)):
        set_gradients(params, others, scale=1024.0)
        if found:
            params[0].grad[3] = float("inf")
        old = [p.detach().clone() for p in params]
        mine.grad_scale, mine.found_inf = scale, torch.full((1,), found, device=cuda_device)
        step_natively(mine)
        del mine.grad_scale, mine.found_inf
        if found:
            assert all(torch.equal(p, q) for p, q in zip(params, old, strict=True)), step
            continue
        for p, q in zip(params, others, strict=True):  # unscaled in place, as by torch's fused optimizers
            assert torch.equal(p.grad.cpu().double(), q.grad)
        theirs.step()
    assert_close(params, others, 5)
    if name in ON_DEVICE:
        assert [float(mine.state[p]["step"]) for p in params] == [3.0] * 3


# The options that a kernel reads on the device where it is given them there.
NUMBERS: dict[str, tuple[str, ...]] = {
    "adam": ("lr", "betas", "eps", "weight_decay"),
    "momentum": ("lr", "momentum", "dampening", "weight_decay"),
}


def numbers_of(group: dict[str, Any], name: str) -> list[float]:
    listed = [group[key] for key in NUMBERS[name]]
    return [n for value in listed for n in (value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("name", NUMBERS)
def test_options_that_are_read_on_the_device(name: str, cuda_device: torch.device) -> None:
    ours, reference, options = OPTIONS[name]
    params = parameters([300, 5], cuda_device)
    others = twins(params)
    counts_there = {"capturable": True} if name == "adam" else {}
    mine = ours(params, lr=0.01, **options, **counts_there)
    theirs = reference(others, lr=0.01, **options)
    call = getattr(_dispatch.native(params[0]), {"adam": "adam_step", "momentum": "sgd_step"}[name])
    group, row = mine.param_groups[0], torch.empty(5 if name == "adam" else 4, dtype=torch.float64)
    said = {"lr": 0.5, "eps": 0.25, "weight_decay": 0.125, "betas": (0.5, 0.75)}
    said |= {"momentum": 0.5, "dampening": 0.0}  # Nesterov's wants no dampening
    for step in range(4):
        set_gradients(params, others)
        if step == 0:
            step_natively(mine)  # makes the state
        else:
            theirs.param_groups[0].update({key: said[key] for key in NUMBERS[name]})
            row.copy_(torch.tensor(numbers_of(theirs.param_groups[0], name), dtype=torch.float64))
            on_device = row.to(cuda_device)
            assert type(call(group, mine.state, _match_layout, None, None, False, False, on_device)) is list
        theirs.step()
    assert_close(params, others, 4)
    assert "no row of" in call(group, mine.state, _match_layout, None, None, False, False, on_device[1:])
    assert "no row of" in call(group, mine.state, _match_layout, None, None, False, False, on_device.float())
    other = optim.RMSprop(params)
    why = _dispatch.native(params[0]).rmsprop_step(
        *(other.param_groups[0], other.state, _match_layout, None, None, False, False, on_device)
    )
    assert "reads no options on the device" in why


def as_misaligned(t: Tensor, other: Tensor) -> Tensor:
    """A copy of `t` as far from a 16-byte boundary as `other`."""
    first = other.data_ptr() % 16 // 4
    return torch.empty(first + t.numel(), device=t.device)[first:].copy_(t)


@every_optimizer
@pytest.mark.parametrize("equally", [False, True])
def test_bitwise_the_same_wherever_an_element_lies(
    name: str, equally: bool, cuda_device: torch.device
) -> None:
    """At another alignment, in another tensor, beside others: the same bits."""
    ours, _, options = OPTIONS[name]
    n = 2 * 4096 + 5
    start, grads = torch.randn(n), [torch.randn(n) for _ in range(3)]
    results: list[Tensor] = []
    for offset, pieces in ((0, [n]), (1, [n]), (2, [3, 4096, 1, n - 4100])):
        memory = torch.zeros(n + offset, device=cuda_device)
        params = [nn.Parameter(part) for part in memory[offset:].copy_(start).split(pieces)]
        mine = ours(params, lr=0.01, **options)
        for grad in grads:
            for p, part in zip(params, grad.to(cuda_device).split(pieces), strict=True):
                p.grad = as_misaligned(part, p) if equally else part.clone()
                for key, state in mine.state[p].items():
                    if equally and key != "step":
                        mine.state[p][key] = as_misaligned(state, p)
            step_natively(mine)
        results.append(torch.cat([p.detach() for p in params]).cpu())
        assert not memory[:offset].any()
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_an_lr_that_kernels_cannot_read_is_left_to_torch(emulated_cuda: Emulation) -> None:
    params = parameters([4], torch.device("cpu"), torch.float32)
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
def test_capture() -> None:
    params = parameters([300, 5], torch.device("cuda"), torch.float32)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    mine, eager = (optim.Adam(p, lr=0.01, capturable=True) for p in (params, others))
    for p, q in zip(params, others, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    step_natively(mine)
    step_natively(eager)

    def step() -> list[Tensor]:
        step_natively(mine)
        return []

    replayed(step, times=3)
    for _ in range(3):
        step_natively(eager)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
