"""SGD, Adagrad and RMSprop: values on every CPU variant, options, layouts, fallback."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fastnn
from every_kernel import assert_reproducible, emulating
from fastnn import _dispatch, optim

needs_native = pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Around the widths of vectors (4 to 16 lanes) and of the chunks that work is cut into.
SIZES = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 1023, 1024, 1025, 5000]
Options = dict[str, Any]
State = dict[str, Tensor]


def sgd_rule(p: Tensor, g: Tensor, state: State, step: int, o: Options) -> Tensor:
    momentum = o["momentum"]
    if momentum:
        state["momentum_buffer"] = (
            g if step == 1 else momentum * state["momentum_buffer"] + (1 - o.get("dampening", 0)) * g
        )
        g = g + momentum * state["momentum_buffer"] if o.get("nesterov") else state["momentum_buffer"]
    return p - o["lr"] * g


def adagrad_rule(p: Tensor, g: Tensor, state: State, step: int, o: Options) -> Tensor:
    state["sum"] = state["sum"] + g * g
    return p - o["lr"] / (1 + (step - 1) * o["lr_decay"]) * g / (state["sum"].sqrt() + o["eps"])


def rmsprop_rule(p: Tensor, g: Tensor, state: State, step: int, o: Options) -> Tensor:
    alpha, momentum = o["alpha"], o["momentum"]
    state["square_avg"] = alpha * state["square_avg"] + (1 - alpha) * g * g
    variance = state["square_avg"]
    if o["centered"]:
        state["grad_avg"] = alpha * state["grad_avg"] + (1 - alpha) * g
        variance = variance - state["grad_avg"] ** 2
    update = g / (variance.sqrt() + o["eps"])
    if momentum:
        update = state["momentum_buffer"] = momentum * state["momentum_buffer"] + update
    return p - o["lr"] * update


def crossed(**choices: Any) -> list[Options]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


class Spec(NamedTuple):
    """One optimizer: ours, torch's, its rule in float64, its options crossed, and one rich choice of them."""

    cls: Any
    reference: Any
    rule: Callable[[Tensor, Tensor, State, int, Options], Tensor]
    options: list[Options]
    rich: Options
    # An eps that keeps the quotient well conditioned: errors grow at most 1 / eps-fold.
    eps: Options


BOTH = (False, True)
SPECS = {
    "sgd": Spec(
        optim.SGD,
        torch.optim.SGD,
        sgd_rule,
        crossed(momentum=(0, 0.9), weight_decay=(0, 0.1), maximize=BOTH)
        + crossed(momentum=(0.9,), weight_decay=(0, 0.1), maximize=BOTH, nesterov=(True,))
        + crossed(momentum=(0.9,), weight_decay=(0, 0.1), maximize=BOTH, dampening=(0.3,)),
        {"momentum": 0.9, "dampening": 0.3},
        {},
    ),
    "adagrad": Spec(
        optim.Adagrad,
        torch.optim.Adagrad,
        adagrad_rule,
        crossed(lr_decay=(0, 0.2), weight_decay=(0, 0.1), initial_accumulator_value=(0, 0.5), maximize=BOTH),
        {"lr_decay": 0.2},
        {"eps": 0.1},
    ),
    "rmsprop": Spec(
        optim.RMSprop,
        torch.optim.RMSprop,
        rmsprop_rule,
        crossed(alpha=(0.99,), momentum=(0, 0.9), centered=BOTH, weight_decay=(0, 0.1), maximize=BOTH)
        + crossed(alpha=(0.3,), momentum=(0, 0.9), centered=BOTH, weight_decay=(0.1,), maximize=(False,)),
        {"momentum": 0.9, "centered": True},
        {"eps": 0.1},
    ),
}
every_optimizer = pytest.mark.parametrize("name", SPECS)


def decisions(run: Callable[[], Any]) -> list[str | None]:
    """The reasons (None: native) of the updates in `run`."""
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


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_optimizer
def test_values_against_float64(every_device: torch.device, name: str, dtype: torch.dtype) -> None:
    spec = SPECS[name]
    stored, computed = torch.finfo(dtype), torch.finfo(torch.promote_types(dtype, torch.float32))
    # About ten roundings of half an eps in the arithmetic, of values up to 40 (squares of gradients up to
    # 5 summed, buffers of quotients up to 10), and the one of the store.
    bound = {"rtol": stored.eps, "atol": 200 * computed.eps + stored.smallest_normal * stored.eps}
    for options in spec.options:
        options = {**options, **spec.eps, "lr": 0.1}
        params = parameters(SIZES, dtype, every_device)
        optimizer = spec.cls(params, **options)
        zeros = flat([p.detach() * 0 for p in params])
        start = options.get("initial_accumulator_value", 0)
        state = {
            "momentum_buffer": zeros,
            "sum": zeros + start,
            "square_avg": zeros,
            "grad_avg": zeros,
        }
        for step in range(1, 4):
            set_gradients(params)
            old, g = flat(params), flat([p.grad for p in params])
            if options["maximize"]:
                g = -g
            step_natively(optimizer)
            new = spec.rule(old, g + options["weight_decay"] * old, state, step, options)
            torch.testing.assert_close(flat(params), new, **bound)
            for key in optimizer.state[params[1]]:
                if key != "step":
                    mine = flat([optimizer.state[p][key] for p in params])
                    torch.testing.assert_close(mine, state[key], **bound)
                    # What is stored is rounded to the parameter's dtype: the next step starts from there.
                    state[key] = mine


CHOICES = [(name, options) for name, spec in SPECS.items() for options in spec.options]


@needs_native
@pytest.mark.parametrize(("name", "options"), CHOICES, ids=str)
def test_many_steps_equal_torch(name: str, options: Options, device: torch.device) -> None:
    spec = SPECS[name]
    params = parameters([(13, 21), (3,), 40], torch.float64, device)
    twin = copy.deepcopy(params)
    options = {**options, **spec.eps, "lr": 3e-3}
    mine, theirs = spec.cls(params, **options), spec.reference(twin, **options)
    for _ in range(20 if emulating() or device.type == "cuda" else 200):
        set_gradients(params, twin)
        step_natively(mine)
        theirs.step()
    eps = torch.finfo(torch.float64).eps
    for p, q in zip(params, twin, strict=True):
        # Some eps of values up to 100 (buffers of 1 / (1 - 0.9) quotients of 10) every step.
        torch.testing.assert_close(p, q, rtol=0, atol=200 * 100 * eps)
        assert mine.state[p].keys() == theirs.state[q].keys()
        for key, value in theirs.state[q].items():
            torch.testing.assert_close(mine.state[p][key], value, rtol=1e-11, atol=200 * 100 * eps)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_optimizer
def test_the_same_bits_every_time(name: str, dtype: torch.dtype, every_device: torch.device) -> None:
    shapes = [400, 3, 1025, 0, 999] if emulating() else [40_000, 3, 1025, 0, 9_999]

    def run() -> list[Tensor]:
        torch.manual_seed(1)
        params = parameters(shapes, dtype, every_device)
        optimizer = SPECS[name].cls(params, lr=0.1, **SPECS[name].rich)
        for _ in range(3):
            set_gradients(params)
            step_natively(optimizer)
        return [p.detach() for p in params]

    assert_reproducible(run, every_device)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_optimizer
def test_views_that_are_not_aligned(every_device: torch.device, name: str, dtype: torch.dtype) -> None:
    spec = SPECS[name]
    for offset, size in itertools.product((1, 3), (1, 17, 100)):
        params = [nn.Parameter(torch.randn(size + offset).to(dtype).to(every_device)[offset:])]
        twin = [nn.Parameter(params[0].detach().clone())]
        mine, theirs = spec.cls(params, lr=0.1, **spec.rich), spec.cls(twin, lr=0.1, **spec.rich)
        for _ in range(3):
            grad = torch.randn(size + offset).to(dtype).to(every_device)[offset:]
            params[0].grad, twin[0].grad = grad, grad.clone()
            step_natively(mine)
            step_natively(theirs)
        assert torch.equal(params[0], twin[0])


@needs_native
@pytest.mark.parametrize("matching", [True, False])
@every_optimizer
def test_transposed_parameters(name: str, matching: bool, every_device: torch.device) -> None:
    spec = SPECS[name]
    params = [
        nn.Parameter(torch.randn(30, 40, device=every_device).t()),
        nn.Parameter(torch.randn(2, 3, 4, 5, device=every_device).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(4, 1, 6, device=every_device).permute(2, 1, 0)),
    ]
    twin = copy.deepcopy(params)
    options = {**spec.rich, **spec.eps, "lr": 0.1}
    mine, theirs = spec.cls(params, **options), spec.reference(twin, **options)
    for _ in range(3):
        set_gradients(params, twin)
        if matching:
            for p in params:
                p.grad = torch.empty_like(p).copy_(p.grad)
        step_natively(mine)
        theirs.step()
    torch.testing.assert_close(params, twin, rtol=1e-5, atol=1e-5)
    for p in params:
        assert all(value.stride() == p.stride() for key, value in mine.state[p].items() if key != "step")


@needs_native
@every_optimizer
def test_none_empty_and_zero_dimensional(every_device: torch.device, name: str) -> None:
    spec = SPECS[name]
    params = parameters([(3,), (0, 4), ()], device=every_device)
    twin = copy.deepcopy(params)
    mine, theirs = spec.cls(params, lr=0.5, **spec.rich), spec.reference(twin, lr=0.5, **spec.rich)
    for parameter in (params, twin):
        parameter[1].grad = torch.zeros_like(parameter[1])
        parameter[2].grad = torch.full_like(parameter[2], 2.0)
    step_natively(mine)
    theirs.step()
    torch.testing.assert_close(params, twin)
    assert [mine.state.get(p, {}).keys() for p in params] == [theirs.state.get(p, {}).keys() for p in twin]
    empty = spec.cls(parameters([3], device=every_device))
    step_natively(empty)  # no gradient at all


@needs_native
@every_optimizer
def test_each_parameter_has_its_own_step_and_dtype(every_device: torch.device, name: str) -> None:
    spec = SPECS[name]
    params = [
        *parameters([7, 8], device=every_device),
        *parameters([9], torch.float64, every_device),
        *parameters([9], torch.bfloat16, every_device),
    ]
    twin = copy.deepcopy(params)
    options = {**spec.rich, **spec.eps, "lr": 0.1}
    mine, theirs = spec.cls(params, **options), spec.reference(twin, **options)
    for present in ((0, 2), (0, 1, 2, 3), (1, 3), (0, 1, 2)):
        for i, (p, q) in enumerate(zip(params, twin, strict=True)):
            p.grad = torch.randn(p.shape).to(p.dtype).to(p.device) if i in present else None
            q.grad = p.grad
        step_natively(mine)
        theirs.step()
    for p, q in zip(params, twin, strict=True):
        # torch rounds every intermediate result of a bfloat16 update, of values up to about ten.
        eps = torch.finfo(p.dtype).eps
        torch.testing.assert_close(p, q, rtol=30 * eps, atol=30 * eps)
        if "step" in theirs.state[q]:
            assert mine.state[p]["step"] == theirs.state[q]["step"]


NAN_OPTIONS: dict[str, list[Options]] = {
    "sgd": [*crossed(momentum=(0, 0.9), weight_decay=(0, 0.1)), {"momentum": 0.9, "nesterov": True}],
    "adagrad": crossed(weight_decay=(0, 0.1), eps=(1e-10, 0.0)),
    "rmsprop": crossed(alpha=(0.99, 0.3, 0.0), momentum=(0, 0.9), weight_decay=(0, 0.1), eps=(1e-8, 0.0)),
}


@needs_native
@every_optimizer
def test_nan_and_infinity_go_where_torch_sends_them(every_device: torch.device, name: str) -> None:
    inf, nan = float("inf"), float("nan")
    special = torch.tensor([0.0, 1.0, -1.0, inf, -inf, nan, 1e30, 1e-45], device=every_device)
    start, grads = torch.cartesian_prod(special, special).unbind(1)
    for options in NAN_OPTIONS[name]:
        p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        mine, theirs = SPECS[name].cls([p], **options), SPECS[name].reference([q], **options)
        for grad in (grads, torch.ones_like(grads), grads.flip(0)):
            p.grad, q.grad = grad.clone(), grad.clone()
            step_natively(mine)
            theirs.step()
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, equal_nan=True)
            for key, value in theirs.state[q].items():
                torch.testing.assert_close(mine.state[p][key], value, rtol=1e-5, atol=1e-6, equal_nan=True)


@needs_native
@every_optimizer
def test_what_is_written_is_seen_by_autograd(name: str, device: torch.device) -> None:
    p = nn.Parameter(torch.ones(3, device=device))
    p.grad = torch.ones_like(p)
    optimizer = SPECS[name].cls([p], **SPECS[name].rich)
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


FALLBACKS: dict[str, tuple[Callable[[], list[Any]], Options, str]] = {
    "complex": (lambda: [nn.Parameter(torch.randn(4, dtype=torch.complex64))], {}, "dtype"),
    "gaps": (lambda: [nn.Parameter(torch.randn(4, 6)[:, ::2])], {}, "one block"),
    "shared memory": (_overlapping, {}, "share memory"),
    "differentiable": (lambda: [torch.randn(4)], {"differentiable": True}, "differentiable"),
    "subclass": (lambda: [torch.randn(4).as_subclass(_Subclass)], {}, "subclass"),
}


@needs_native
@pytest.mark.parametrize("case", FALLBACKS)
@every_optimizer
def test_what_is_not_covered_is_left_to_torch(name: str, case: str, device: torch.device) -> None:
    spec = SPECS[name]
    if device.type == "cuda" and case == "shared memory":
        pytest.skip("torch updates all elements at once, in no order")
    make, options, reason = FALLBACKS[case]
    options = {**options, **spec.rich, "lr": 0.1}
    torch.manual_seed(1)
    with device:
        params = make()
    torch.manual_seed(1)
    with device:
        twin = make()
    mine, theirs = spec.cls(params, **options), spec.reference(twin, **options)
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
        assert mine.state[p].keys() == theirs.state[q].keys()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own
@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_sparse_gradients_are_left_to_torch(name: str) -> None:
    spec = SPECS[name]
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    mine, theirs = spec.cls([p], lr=0.1), spec.reference([q], lr=0.1)
    for _ in range(2):
        p.grad = q.grad = torch.tensor([0.0, 2.0, 3.0]).to_sparse()
        (why,) = decisions(mine.step)
        assert why is not None
        theirs.step()
    assert torch.equal(p, q)


@needs_native
@every_optimizer
def test_one_group_falls_back_alone(name: str, device: torch.device) -> None:
    native, left = parameters([5], device=device), [nn.Parameter(torch.randn(4, 6, device=device)[:, ::2])]
    set_gradients(native + left)
    first, second = decisions(SPECS[name].cls([{"params": native}, {"params": left}]).step)
    assert first is None
    assert second is not None


@needs_native
@every_optimizer
def test_disabled_gives_what_torch_gives(name: str, device: torch.device) -> None:
    spec = SPECS[name]
    params = parameters([(5, 6), (7,)], device=device)
    twin = copy.deepcopy(params)
    mine, theirs = spec.cls(params, **spec.rich), spec.reference(twin, **spec.rich)
    for _ in range(3):
        set_gradients(params, twin)
        with fastnn.disabled():
            assert decisions(mine.step) == ["fastnn is disabled"]
        theirs.step()
    assert all(torch.equal(p, q) for p, q in zip(params, twin, strict=True))
