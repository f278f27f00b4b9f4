"""The optimizers that tests/optim tests, each with torch's, and what those tests share."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fastnn import _dispatch, optim

needs_native = pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")
HALF = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, torch.float64, *HALF]
every_half = pytest.mark.parametrize("dtype", HALF, ids=str)
# Around the widths of vectors (4 to 16 lanes) and of the chunks that work is cut into.
SIZES = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 1023, 1024, 1025, 5000]
Options = dict[str, Any]
State = dict[str, Tensor]

# What optimizers of 16-bit parameters may keep in float32.
STATE: Options = {"state_dtype": torch.float32}
MASTERS: Options = {"master_weights": True}
either = pytest.mark.parametrize("extra", [STATE, MASTERS], ids=str)
# A dtype with options under which master weights must not make a difference.
KEPT = [(torch.float32, {}), (torch.bfloat16, MASTERS)]
with_and_without_masters = pytest.mark.parametrize(("dtype", "extra"), KEPT, ids=str)


def adam_rule(p: Tensor, g: Tensor, state: State, step: int, o: Options) -> Tensor:
    return _adam(p, g + o["weight_decay"] * p, state, step, o)


def adamw_rule(p: Tensor, g: Tensor, state: State, step: int, o: Options) -> Tensor:
    return _adam(p * (1 - o["lr"] * o["weight_decay"]), g, state, step, o)


def _adam(p: Tensor, g: Tensor, state: State, step: int, o: Options) -> Tensor:
    beta1, beta2 = o["betas"]
    m = state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
    v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g
    if o["amsgrad"]:
        v = state["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], v)
    return p - o["lr"] / (1 - beta1**step) * m / (v.sqrt() / (1 - beta2**step) ** 0.5 + o["eps"])


def sgd_rule(p: Tensor, g: Tensor, state: State, step: int, o: Options) -> Tensor:
    g, momentum = g + o["weight_decay"] * p, o["momentum"]
    if momentum:
        state["momentum_buffer"] = (
            g if step == 1 else momentum * state["momentum_buffer"] + (1 - o.get("dampening", 0)) * g
        )
        g = g + momentum * state["momentum_buffer"] if o.get("nesterov") else state["momentum_buffer"]
    return p - o["lr"] * g


def adagrad_rule(p: Tensor, g: Tensor, state: State, step: int, o: Options) -> Tensor:
    g = g + o["weight_decay"] * p
    state["sum"] = state["sum"] + g * g
    return p - o["lr"] / (1 + (step - 1) * o["lr_decay"]) * g / (state["sum"].sqrt() + o["eps"])


def rmsprop_rule(p: Tensor, g: Tensor, state: State, step: int, o: Options) -> Tensor:
    g, alpha, momentum = g + o["weight_decay"] * p, o["alpha"], o["momentum"]
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


class Kind(NamedTuple):
    """A class of optimizers."""

    ours: Any
    torchs: Any
    # The update implemented again, in float64: parameter, gradient, state, number of the step, options.
    rule: Callable[[Tensor, Tensor, State, int, Options], Tensor]
    options: list[Options]
    eps: Options  # keeps quotients well conditioned: errors of the state grow at most 1 / eps-fold
    for_nan: list[Options]
    # For numbers of about 1 in a step: about ten roundings of half an eps, of values up to 5 (Adam), else 40
    # (squares of gradients up to 5 summed, buffers of quotients up to 10).
    roundings: int


BOTH = (False, True)
ADAM = (
    crossed(amsgrad=BOTH, maximize=BOTH, weight_decay=(0.0, 0.1), betas=((0.9, 0.999), (0.3, 0.9))),
    {"eps": 0.1},
    [
        {**a, **b}
        for a in crossed(betas=((0.9, 0.999), (0.3, 0.5), (0.0, 0.0)), amsgrad=BOTH)
        for b in ({}, {"eps": 0.0}, {"weight_decay": 0.1})
    ],
    25,
)
KINDS = {
    "Adam": Kind(optim.Adam, torch.optim.Adam, adam_rule, *ADAM),
    "AdamW": Kind(optim.AdamW, torch.optim.AdamW, adamw_rule, *ADAM),
    "SGD": Kind(
        optim.SGD,
        torch.optim.SGD,
        sgd_rule,
        crossed(momentum=(0, 0.9), weight_decay=(0, 0.1), maximize=BOTH)
        + crossed(momentum=(0.9,), weight_decay=(0, 0.1), maximize=BOTH, nesterov=(True,))
        + crossed(momentum=(0.9,), weight_decay=(0, 0.1), maximize=BOTH, dampening=(0.3,)),
        {},
        [*crossed(momentum=(0, 0.9), weight_decay=(0, 0.1)), {"momentum": 0.9, "nesterov": True}],
        200,
    ),
    "Adagrad": Kind(
        optim.Adagrad,
        torch.optim.Adagrad,
        adagrad_rule,
        crossed(lr_decay=(0, 0.2), weight_decay=(0, 0.1), initial_accumulator_value=(0, 0.5), maximize=BOTH),
        {"eps": 0.1},
        crossed(weight_decay=(0, 0.1), eps=(1e-10, 0.0)),
        200,
    ),
    "RMSprop": Kind(
        optim.RMSprop,
        torch.optim.RMSprop,
        rmsprop_rule,
        crossed(alpha=(0.99,), momentum=(0, 0.9), centered=BOTH, weight_decay=(0, 0.1), maximize=BOTH)
        + crossed(alpha=(0.3,), momentum=(0, 0.9), centered=BOTH, weight_decay=(0.1,), maximize=(False,)),
        {"eps": 0.1},
        crossed(alpha=(0.99, 0.3, 0.0), momentum=(0, 0.9), weight_decay=(0, 0.1), eps=(1e-8, 0.0)),
        200,
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


class Case(NamedTuple):
    """An optimizer with options, including an eps like `Kind.eps`."""

    ours: Any
    torchs: Any
    options: Options


def _case(kind: str, **options: Any) -> Case:
    ours, torchs, *_ = KINDS[kind]
    return Case(ours, torchs, {**KINDS[kind].eps, **options})


CASES = {
    "adam": _case("Adam", weight_decay=0.1),
    "amsgrad": _case("Adam", amsgrad=True, maximize=True),
    "adamw": _case("AdamW", weight_decay=0.1),
    "sgd": _case("SGD", weight_decay=0.1, maximize=True),
    "momentum": _case("SGD", momentum=0.9, dampening=0.3),
    "nesterov": _case("SGD", momentum=0.9, nesterov=True, weight_decay=0.1),
    "adagrad": _case("Adagrad", lr_decay=0.2, weight_decay=0.1, initial_accumulator_value=0.3),
    "rmsprop": _case("RMSprop", weight_decay=0.1),
    "centered": _case("RMSprop", centered=True),
    "centered momentum": _case("RMSprop", centered=True, momentum=0.9, maximize=True),
}
FUSED = {name: case for name, case in CASES.items() if case.ours is not optim.RMSprop}  # torch has none of it


def of_cases(cases: dict[str, Case]) -> Any:
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


def needs_state_begun_late(torchs: Any) -> None:
    """Skip if torch's optimizer gives no state to parameters added later, like Adagrad of torch 2.10."""
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer = torchs([parameter], lr=0.1)
    optimizer.state.clear()
    try:
        optimizer.step()
    except KeyError:
        pytest.skip("this torch begins no state later")


every_case = of_cases(CASES)
every_fused = of_cases(FUSED)


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
) -> list[Any]:
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype).to(device)) for shape in shapes]


def twins(params: list[Any], dtype: torch.dtype | None = None) -> list[Any]:
    """The same numbers, perhaps in another dtype."""
    return [nn.Parameter(p.detach().to(dtype or p.dtype, copy=True)) for p in params]


def set_gradients(params: list[Any], *others: list[Any]) -> None:
    """New random gradients, rounded to the dtype of `params`, the same numbers for all."""
    for same in zip(params, *others, strict=True):
        grad = torch.randn(same[0].shape, dtype=torch.float64).to(same[0].dtype)
        for p in same:
            p.grad = grad.to(p.dtype).to(p.device, copy=True)


def train(optimizer: torch.optim.Optimizer, params: list[Any], steps: int, start: int = 0) -> None:
    """Take steps with gradients that depend on the numbers of the steps."""
    for step in range(start, start + steps):
        torch.manual_seed(step)
        set_gradients(params)
        optimizer.step()


def master(optimizer: torch.optim.Optimizer, param: Any) -> Tensor:
    found: Tensor = optimizer.state[param]["master_param"]
    return found


def masters(optimizer: torch.optim.Optimizer, params: list[Any]) -> list[Tensor]:
    return [master(optimizer, p) for p in params]


def assert_same(a: list[Any], b: list[Any]) -> None:
    """Bit for bit, with NaN equal to NaN."""
    for p, q in zip(a, b, strict=True):
        assert p.dtype is q.dtype
        torch.testing.assert_close(p.detach().cpu(), q.detach().cpu(), rtol=0, atol=0, equal_nan=True)


def assert_follows_float32(mine: Any, params: list[Any], theirs: Any, others: list[Any]) -> None:
    """State and masters equal those of a float32 optimizer, and parameters its rounded parameters."""
    assert_same(params, [q.detach().to(p.dtype) for p, q in zip(params, others, strict=True)])
    for p, q in zip(params, others, strict=True):
        state = dict(mine.state.get(p, {}))
        if "master_param" in state:
            assert_same([state.pop("master_param")], [q.detach()])
        expected = theirs.state.get(q, {})
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            assert_same([state[key]], [value])


class Beside:
    """Our optimizer and one with the same numbers that it must match.

    That is torch's, or with float32 state (`extra`) ours on float32 parameters. `native`: options that
    torch's does not get.
    """

    def __init__(
        self, case: Case, params: list[Any], extra: Options, native: Options | None = None, **options: Any
    ) -> None:
        self.params, self._bitwise = params, bool(extra)
        options, ours = {"lr": 0.01, **case.options, **options}, native or {}
        self.mine = case.ours(params, **extra, **options, **ours)
        if extra:
            self.others = [nn.Parameter(p.detach().float().contiguous()) for p in params]
            self.theirs = case.ours(self.others, **options, **ours)
        else:
            self.others = copy.deepcopy(params)
            self.theirs = case.torchs(self.others, **options)

    def both(self) -> list[tuple[Any, list[Any]]]:
        return [(self.mine, self.params), (self.theirs, self.others)]

    def step(self) -> None:
        """Take a step with the present gradients."""
        step_natively(self.mine)
        self.theirs.step()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            set_gradients(self.params, self.others)
            self.step()

    def check(self, roundings: float = 100) -> None:
        """Bit for bit, or up to roundings of numbers of about 1."""
        if self._bitwise:
            assert_follows_float32(self.mine, self.params, self.theirs, self.others)
            return
        for p, q in zip(self.params, self.others, strict=True):
            bound = roundings * torch.finfo(p.dtype).eps
            ours, torchs = dict(self.mine.state.get(p, {})), dict(self.theirs.state.get(q, {}))
            # If torch counts steps on the host, fused kernels may count them on the device.
            if "step" in ours:
                assert float(ours.pop("step")) == float(torchs.pop("step"))
            torch.testing.assert_close([p, ours], [q, torchs], rtol=bound, atol=bound)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2)).to(dtype)


def train_network(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    dtype = next(model.parameters()).dtype
    for i in range(start, start + steps):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(8, 5, generator=generator).to(dtype)
        optimizer.zero_grad()
        model(x).tanh().square().mean().backward()  # bounded, also when maximized
        optimizer.step()


def assert_networks_close(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        # Float32 roundings of some tens of steps.
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def through_file(state: Options) -> Options:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: Options = torch.load(file)
    return loaded
