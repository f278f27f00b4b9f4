"""Everything public under `torch.compile(fullgraph=True)`: one graph without breaks, and the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch import Tensor

from fastnn import functional as F
from fastnn import nn, optim
from fresh import Fresh, output

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.compile's own


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend="eager")


ROWS, IN, OUT = 6, 5, 4
WEIGHT, BIAS = torch.randn(OUT, IN), torch.randn(OUT)
LABELS = torch.randint(OUT, (ROWS,))
PROBABILITIES = torch.rand(ROWS, OUT).softmax(1)
CLASS_WEIGHT = torch.rand(OUT)

# Functions of x (ROWS, IN).
FUNCTIONS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "linear": [
        lambda x: F.linear(x, WEIGHT),
        *(lambda x, a=a: F.linear(x, WEIGHT, BIAS, a) for a in ("relu", "sigmoid", "tanh", "gelu", "silu")),
        lambda x: F.linear(x[0], WEIGHT, BIAS),
    ],
    "relu": [F.relu, lambda x: F.relu(x * 2, inplace=True), lambda x: F.relu(x.t())],
    "cross_entropy": [
        lambda x: F.cross_entropy(x[:, :OUT], LABELS),
        lambda x: F.cross_entropy(x[:, :OUT], LABELS, CLASS_WEIGHT, ignore_index=1, label_smoothing=0.1),
        lambda x: F.cross_entropy(x[:, :OUT], PROBABILITIES, reduction="sum", z_loss=0.1),
        lambda x: F.cross_entropy(x[:, :OUT], LABELS, reduction="none"),
    ],
    "linear_cross_entropy": [
        lambda x: F.linear_cross_entropy(x, WEIGHT, LABELS),
        lambda x: F.linear_cross_entropy(
            x, WEIGHT, LABELS, linear_bias=BIAS, weight=CLASS_WEIGHT, label_smoothing=0.1, reduction="sum"
        ),
    ],
    "gram_matrix": [F.gram_matrix, lambda x: F.gram_matrix(x, normalize=True)],
}

# The module, and its arguments besides x.
MODULES: dict[str, list[tuple[Callable[[], Any], tuple[Any, ...]]]] = {
    "Linear": [(lambda: nn.Linear(IN, OUT), ()), (lambda: nn.Linear(IN, OUT, activation="gelu"), ())],
    "ReLU": [(nn.ReLU, ())],
    "Sequential": [(lambda: nn.Sequential(nn.Linear(IN, OUT), nn.ReLU(), nn.Linear(OUT, 2)), ())],
    "MLP": [(lambda: nn.MLP([IN, 8, OUT]), ())],
    "GramMatrix": [(nn.GramMatrix, ())],
    "CrossEntropyLoss": [(nn.CrossEntropyLoss, (torch.randint(IN, (ROWS,)),))],
}

# Not under `fused`, which torch does not trace into.
OPTIMIZERS: dict[str, list[dict[str, Any]]] = {
    "Adam": [{}, {"amsgrad": True}, {"foreach": True}],
    "AdamW": [{}],
    "SGD": [{}, {"momentum": 0.9}],
    "Adagrad": [{}],
    "RMSprop": [{}, {"centered": True, "momentum": 0.9}],
}


def each(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}-{i}")
        for name, cases in table.items()
        for i, case in enumerate(cases)
    ]


def test_everything_public_is_listed() -> None:
    assert set(FUNCTIONS) == set(F.__all__)
    assert {*MODULES, "utils"} == set(nn.__all__)
    assert nn.utils.__all__ == ["clip_grad_norm_"]
    assert {*OPTIMIZERS, "polyak_"} == set(optim.__all__)


@pytest.mark.parametrize(("name", "function"), each(FUNCTIONS))
def test_a_function_compiles_whole(name: str, function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(ROWS, IN, requires_grad=True)
    ours, want = compiled(function)(x), function(x)
    torch.testing.assert_close(ours, want)
    (grad,), (grad_wanted,) = (torch.autograd.grad(y.square().sum(), x) for y in (ours, want))
    torch.testing.assert_close(grad, grad_wanted)


@pytest.mark.parametrize(("name", "case"), each(MODULES))
def test_a_module_compiles_whole(name: str, case: tuple[Callable[[], Any], tuple[Any, ...]]) -> None:
    make, more = case
    module, x = make(), torch.randn(ROWS, IN, requires_grad=True)
    leaves = [x, *module.parameters()]
    ours, want = compiled(module)(x, *more), module(x, *more)
    torch.testing.assert_close(ours, want)
    for grad, wanted in zip(
        *(torch.autograd.grad(y.square().sum(), leaves) for y in (ours, want)), strict=True
    ):
        torch.testing.assert_close(grad, wanted)


def parameters() -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 4), 5, 2)]
    for p in params[:2]:
        p.grad = torch.randn_like(p)
    return params


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
def test_clip_grad_norm_compiles_whole(norm_type: float) -> None:
    ours, theirs = parameters(), parameters()
    for p, q in zip(ours, theirs, strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    try:
        wanted = compiled(lambda: torch.nn.utils.clip_grad_norm_(theirs, 0.5, norm_type))()
    except torch._dynamo.exc.Unsupported:
        pytest.skip("torch's own, which is what is traced, does not compile whole")
    norm = compiled(lambda: nn.utils.clip_grad_norm_(ours, 0.5, norm_type))()
    torch.testing.assert_close(norm, wanted)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.7, 1.0])
def test_polyak_compiles_whole(tau: float) -> None:
    targets, sources = parameters(), parameters()
    want = [torch.lerp(t.detach(), s.detach(), tau) for t, s in zip(targets, sources, strict=True)]
    compiled(lambda: optim.polyak_(targets, sources, tau))()
    for t, wanted in zip(targets, want, strict=True):
        torch.testing.assert_close(t.detach(), wanted)


def test_a_step_compiles_after_the_first_optimizer_of_torchs_class_is_made(run_fresh: Fresh) -> None:
    code = """
    import torch, fastnn
    param = torch.zeros(3, requires_grad=True)
    param.grad = torch.ones(3)
    sgd = fastnn.optim.SGD([param], lr=0.5)
    torch.optim.SGD([param])  # wraps the step of its class
    torch.compile(lambda: sgd.step(), fullgraph=True, backend="eager")()
    print(param.tolist())
    """
    assert output(run_fresh(dedent(code))) == "[-0.5, -0.5, -0.5]"


@pytest.mark.parametrize(("name", "options"), each(OPTIMIZERS))
def test_an_optimizers_step_compiles_whole(name: str, options: dict[str, Any]) -> None:
    params = parameters()
    others = copy.deepcopy(params)
    mine = getattr(optim, name)(params, lr=0.1, **options)
    theirs = getattr(torch.optim, name)(others, lr=0.1, **options)
    step = compiled(lambda: mine.step())
    for _ in range(2):
        for p, q in zip(params[:2], others[:2], strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        step()
        theirs.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q)
    compiled(lambda: mine.zero_grad())()
    assert all(p.grad is None for p in params)
