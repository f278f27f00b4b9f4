"""Float32 state and masters of 16-bit parameters: values with every kernel, users between steps, fallback."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from torch import nn

import fastnn
from fastnn import _backend, optim
from half_precision import (
    HALF,
    MASTERS,
    OPTIMIZERS,
    STATE,
    assert_follows_float32,
    assert_same,
    decisions,
    master,
    masters,
    parameters,
    set_gradients,
    step_natively,
    twins,
)

needs_native = pytest.mark.skipif(_backend.cpu is None, reason="the compiled module is not built")
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
every_half = pytest.mark.parametrize("dtype", HALF, ids=str)
# Around the widths of vectors (4 to 16 lanes) and of the chunks that work is cut into.
SIZES = [0, 1, 3, 5, 8, 9, 16, 17, 33, 64, 65, 1023, 1025, 5000]


@needs_native
@every_half
@every_optimizer
def test_masters_are_a_float32_optimizer_bit_by_bit(isa: str, name: str, dtype: torch.dtype) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters(SIZES, dtype)
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
def test_float32_state_is_that_of_a_float32_optimizer(isa: str, name: str, dtype: torch.dtype) -> None:
    """Whose parameters are rounded after every step."""
    cls, _, options = OPTIMIZERS[name]
    params = parameters(SIZES, dtype)
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
def test_values_against_float64(isa: str, name: str, dtype: torch.dtype, extra: dict[str, Any]) -> None:
    cls, reference, options = OPTIMIZERS[name]
    params = parameters(SIZES, dtype)
    others = twins(params, torch.float64)
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
                torch.testing.assert_close(state[key].double(), value.double(), **bound)
            if extra is MASTERS:
                torch.testing.assert_close(state["master_param"].double(), q.detach(), **bound)
            # The parameter is rounded once: to half an eps of it, where it is no subnormal.
            half_eps, tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal
            rounded = {"rtol": half_eps * 1.001, "atol": bound["atol"] + tiny * half_eps}
            torch.testing.assert_close(p.detach().double(), q.detach(), **rounded)
            if extra is STATE:
                q.data.copy_(p.data)


@needs_native
@every_optimizer
def test_bfloat16_alone_stands_still_where_masters_move(isa: str, name: str) -> None:
    cls, _, options = OPTIMIZERS[name]
    options = {**options, "weight_decay": 0.0, "maximize": False}
    lr = 1e-4  # so that a step is below 2^-9, half the distance to the number before 1, and 200 are above
    if cls is optim.Adagrad:
        lr, options["lr_decay"] = 1e-3, 0.0
    elif "centered" in options:
        lr = 1e-5
    ends = {}
    for kind, extra in (("alone", {}), ("state", STATE), ("masters", MASTERS)):
        p = nn.Parameter(torch.full((40,), 1.0, dtype=torch.bfloat16))
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
def test_a_second_moment_decays_in_float32_alone(isa: str) -> None:
    ends = []
    for extra in ({}, STATE):
        p = nn.Parameter(torch.zeros(20, dtype=torch.bfloat16))
        optimizer = optim.Adam([p], **extra)
        for step in range(100):
            p.grad = torch.full_like(p, 0.0 if step else 32.0)
            step_natively(optimizer)
        ends.append(optimizer.state[p]["exp_avg_sq"].double())
    first = 1024 * 0.001
    torch.testing.assert_close(ends[0], torch.full_like(ends[0], first), rtol=2.0**-8, atol=0)  # stands still
    torch.testing.assert_close(ends[1], torch.full_like(ends[1], first * 0.999**99), rtol=1e-5, atol=0)


@needs_native
@every_half
@every_optimizer
def test_what_a_user_sets_is_the_new_master(isa: str, name: str, dtype: torch.dtype) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([100, 7], dtype)
    others = twins(params)
    mine, theirs = cls(params, lr=0.01, **MASTERS, **options), cls(others, lr=0.01, **options)
    values = torch.tensor([3.0, -2.0, 0.0, -0.0, float("nan"), float("inf"), 1e-7])

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
def test_the_same_values_again_keep_the_masters(isa: str, dtype: torch.dtype) -> None:
    """A model and its optimizer are loaded in any order."""
    params = parameters([100], dtype)
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
def test_wider_parameters_are_unaffected(isa: str, name: str, extra: dict[str, Any]) -> None:
    cls, _, options = OPTIMIZERS[name]
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32]
    params = [parameters([33], dtype)[0] for dtype in dtypes]
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
def test_bits_do_not_depend_on_threads(isa: str, name: str) -> None:
    cls, _, options = OPTIMIZERS[name]
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(1)
            params = parameters([20_000, 3, 1025, 0, 9_999])
            optimizer = cls(params, lr=0.1, **MASTERS, **options)
            for _ in range(3):
                set_gradients(params)
                step_natively(optimizer)
            results.append([p.detach().clone() for p in params] + masters(optimizer, params))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_same(results[0], other)


@needs_native
@every_half
@every_optimizer
def test_views_that_are_not_aligned(isa: str, name: str, dtype: torch.dtype) -> None:
    cls, _, options = OPTIMIZERS[name]
    for offset, size in itertools.product((1, 3), (1, 17, 100)):
        memory = torch.randn(size + offset).to(dtype)
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
def test_transposed_parameters(isa: str, name: str, matching: bool) -> None:
    cls, _, options = OPTIMIZERS[name]
    half = torch.bfloat16
    params = [
        nn.Parameter(torch.randn(30, 40).to(half).t()),
        nn.Parameter(torch.randn(2, 3, 4, 5).to(half, memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(4, 1, 6).to(half).permute(2, 1, 0)),
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
def test_none_empty_and_zero_dimensional(isa: str, name: str) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([(3,), (0, 4), ()])
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
def test_groups_and_parameters_that_come_later(isa: str, name: str) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([5, 6])
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
def test_masters_that_are_dropped_begin_anew(isa: str, name: str) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([50])
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
def test_what_is_written_is_seen_by_autograd(isa: str) -> None:
    params = parameters([3])
    optimizer = optim.Adam(params, amsgrad=True, **MASTERS)
    set_gradients(params)
    step_natively(optimizer)
    written = [params[0], *optimizer.state[params[0]].values()]
    assert len(written) == 6
    versions = [t._version for t in written]
    step_natively(optimizer)
    assert all(t._version > version for t, version in zip(written, versions, strict=True))


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
def test_disabled_goes_on_with_the_same_state(name: str, dtype: torch.dtype, extra: dict[str, Any]) -> None:
    cls, _, options = OPTIMIZERS[name]
    params = parameters([(5, 6), (7,), 0], dtype)
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
def test_what_torch_must_update(name: str, case: str) -> None:
    make, more, reason = FALLBACKS[case]
    cls, reference, options = OPTIMIZERS[name]
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
