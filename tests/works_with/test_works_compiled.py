"""docs/works-with.md: torch.compile, torch.export and the transforms of torch.func."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor
from torch.func import functional_call, grad, hessian, jvp, vjp, vmap

import fastnn
from page import Cell, line
from pairs import OUT, Pair, Training, batch, check, network

# torch.compile's own warnings, and those of functions that forward-mode AD scripts when first used.
pytestmark = pytest.mark.filterwarnings("ignore")


class Graphs:
    """A backend that runs graphs unchanged, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


def compiled(function: Callable[..., Any], backend: Any, **options: Any) -> Any:
    return torch.compile(function, **{"fullgraph": True, **options}, backend=backend)


OF_MODEL_AND_LOSS = "torch.compile, fullgraph, dynamic batch, of model and loss"


def train_compiled(cell: Cell, backend: Any, tolerance: float) -> Training:
    """A training of a compiled model and torch's, on batches of several sizes."""
    pair = Pair(cell.column)
    mine = pair.mine
    if cell.column == "modules":
        forward = compiled(lambda x, y: mine.loss(mine.model(x), y), backend, dynamic=True)

        def step(x: Tensor, y: Tensor) -> Tensor:
            mine.optimizer.zero_grad()
            loss: Tensor = forward(x, y)
            loss.backward()
            mine.optimizer.step()
            return loss.detach()

        mine.step = step
    else:
        mine.model = compiled(mine.model, backend, dynamic=True)
        mine.renew()
    close = {"rtol": tolerance, "atol": tolerance}
    for rows in 3 * (12, 5, 7, 30):
        x, y = batch(rows)
        torch.testing.assert_close(mine.step(x, y), pair.theirs.step(x, y), **close)
    for p, q in zip(mine.model.parameters(), pair.theirs.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, **close)
    return mine


@line(OF_MODEL_AND_LOSS)
def test_a_compiled_model_trains_the_same(cell: Cell) -> None:
    """One graph for batches of any size; what is trained is what torch trains."""
    graphs = Graphs()
    mine = train_compiled(cell, graphs, tolerance=1e-7)
    assert graphs.count == 1
    if cell.column == "modules":
        torch.compiler.reset()  # earlier compilations have no influence
    check(cell, mine.step, *batch())


@pytest.mark.long
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
@line(OF_MODEL_AND_LOSS)
def test_a_model_compiled_by_inductor_trains_the_same(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    train_compiled(cell, "inductor", tolerance=1e-7)
    assert any(tmp_path.rglob("*.cpp"))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad", "RMSprop"])
@line("torch.compile, fullgraph, of the optimizer's step")
def test_compiled_optimizer(cell: Cell, name: str) -> None:
    pair = Pair(cell.column, optimizer=name)
    pair.steps(1)  # makes the state

    def compile_update(training: Training) -> None:
        """For both: torch's Adam rounds differently when compiled, to two graphs."""
        update = compiled(training.optimizer.step, Graphs(), fullgraph=training is pair.mine)

        def step(x: Tensor, y: Tensor) -> Tensor:
            training.optimizer.zero_grad()
            loss: Tensor = training.loss(training.model(x), y)
            loss.backward()
            update()
            return loss.detach()

        training.step = step

    pair.each(compile_update)
    pair.steps()
    torch.compiler.reset()
    pair.check(cell)


@line("torch.export")
def test_an_exported_model_computes_the_same(cell: Cell) -> None:
    theirs = network()
    mine = fastnn.convert(network())
    mine.load_state_dict(theirs.state_dict())
    x, _ = batch()
    rows = torch.export.Dim("rows", min=2)

    def exported(model: torch.nn.Module) -> Any:
        return torch.export.export(model, (x,), dynamic_shapes=({0: rows},))

    program = check(cell, exported, mine)
    ops = [[str(node.target) for node in p.graph.nodes] for p in (program, exported(theirs))]
    assert ops[0] == ops[1]  # as if fastnn were not there
    x, _ = batch(7)
    torch.testing.assert_close(program.module()(x), theirs(x))


def _loss(functional: Any) -> Callable[..., Tensor]:
    """A small network and its loss as a function of parameters and data."""

    def loss(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = functional.cross_entropy(functional.relu(functional.linear(x, weight, bias)), y)
        return result

    return loss


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor]], Callable[..., Any]]] = {
    "grad": lambda f: grad(f, (0, 1)),
    "hessian": hessian,
    "jvp": lambda f: lambda w, b, x, y: jvp(lambda w: f(w, b, x, y), (w,), (torch.ones_like(w),)),
    "vjp": lambda f: lambda w, b, x, y: vjp(lambda w: f(w, b, x, y), w)[1](torch.ones((), dtype=w.dtype)),
    "vmap": lambda f: lambda w, b, x, y: vmap(f, (0, None, None, None))(torch.stack([w, 2 * w]), b, x, y),
    "vmap of grad": lambda f: lambda w, b, x, y: vmap(grad(f), (None, None, 0, 0))(w, b, x, y),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@line("torch.func: grad, jvp, vjp, vmap, hessian")
def test_transforms_give_what_torch_gives(cell: Cell, name: str) -> None:
    x, y = batch()
    weight, bias = torch.randn(OUT, x.shape[1], dtype=x.dtype), torch.randn(OUT, dtype=x.dtype)
    transform = TRANSFORMS[name]
    got = check(cell, transform(_loss(fastnn.functional)), weight, bias, x, y)
    torch.testing.assert_close(got, transform(_loss(TF))(weight, bias, x, y))


@line("torch.func: per-sample gradients of a model")
def test_per_sample_gradients(cell: Cell) -> None:
    theirs = network()
    mine = fastnn.convert(network())
    x, y = batch()

    def gradients(model: torch.nn.Module, loss_function: Any) -> Any:
        def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            result: Tensor = loss_function(functional_call(model, parameters, (x[None],)), y[None])
            return result

        parameters = {name: p.detach() for name, p in theirs.named_parameters()}
        return vmap(grad(loss), (None, 0, 0))(parameters, x, y)

    got = check(cell, gradients, mine, fastnn.nn.CrossEntropyLoss())
    torch.testing.assert_close(got, gradients(theirs, torch.nn.CrossEntropyLoss()))


@line("torch.func.functional_call")
def test_functional_call(cell: Cell) -> None:
    """Outside any transform: other parameters, to which gradients flow."""

    def step(model: Any, loss_function: Any, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        halved = {name: p / 2 for name, p in model.named_parameters()}
        loss: Tensor = loss_function(functional_call(model, halved, (x,)), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    pair = Pair(cell.column, body=step)
    pair.steps()
    pair.check(cell)
