"""What is fused into products and into the gradients of losses, and what is not."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from fastnn import _dispatch
from fastnn.capture.epilogues import fuse_epilogues
from fastnn.capture.ir import Elementwise, Instruction, Node, Storage, View, contiguous_strides
from fastnn.capture.lowering.products import Product
from fastnn.capture.lowering.table import Lowering, lower
from one_op import _as_tensor

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled extension")

F = torch.nn.functional
aten = torch.ops.aten
FUNCTIONS: dict[str, Any] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "add": torch.add,
    "mul": torch.mul,
    "gate": aten.threshold_backward,
    "relu_gradient": lambda g, y: aten.threshold_backward(g, y, 0),
    "tanh_backward": aten.tanh_backward,
    "sigmoid_gradient": aten.sigmoid_backward,
    "gelu_backward": aten.gelu_backward,
    "silu_gradient": aten.silu_backward,
}
PRODUCTS_AND_SUMS = {"relu_gradient", "tanh_backward", "sigmoid_gradient", "gelu_backward", "silu_gradient"}


def planned(*shape: int, dtype: torch.dtype = torch.float32) -> View:
    view = View(Storage(0), 0, shape, contiguous_strides(shape), dtype)
    view.storage.bytes = view.numel * dtype.itemsize
    return view


def given(t: Tensor) -> View:
    base = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
    return View(Storage(base.numel(), base), t.storage_offset(), tuple(t.shape), t.stride(), t.dtype)


def product(c: View, a: View, b: View, **kwargs: Any) -> Instruction:
    return Product(c, a, b, **kwargs).instruction()


def elementwise(out: View, *expr: Any) -> Elementwise:
    return Elementwise(out, expr, out.dtype)


class Run:
    """Runs nodes one by one; the user's memory is copied first."""

    def __init__(self, nodes: list[Node]) -> None:
        self.memory: dict[int, Tensor] = {}
        for node in nodes:
            for view in (*node.outs, *node.ins):
                if view.storage.tensor is not None:
                    self.memory.setdefault(id(view.storage), view.storage.tensor.clone())
        for node in nodes:
            if isinstance(node, Instruction):
                operands = [self.tensor(v) for v in (*node.outs, *node.ins)]
                assert _dispatch.cpu is not None
                _dispatch.cpu.testing.run_instruction(node.name, operands, node.numbers, node.code)
            else:
                assert isinstance(node, Elementwise)
                value = self.value(node.expr)
                out = self.tensor(node.out)
                out.copy_(value.expand(node.out.shape) if isinstance(value, Tensor) else value)

    def tensor(self, view: View) -> Tensor:
        return _as_tensor(view, self.memory)

    def value(self, expr: Any) -> Any:
        if isinstance(expr, View):
            return self.tensor(expr)
        if isinstance(expr, tuple):
            return FUNCTIONS[expr[0]](*(self.value(e) for e in expr[1:]))
        return expr


def check(nodes: list[Node], left: int, *results: View) -> list[Node]:
    """`left` nodes remain, and give the same results."""
    fused = fuse_epilogues(nodes, [view.storage for view in results])
    before, after = Run(nodes), Run(fused)
    for view in results:
        torch.testing.assert_close(after.tensor(view), before.tensor(view), rtol=1e-4, atol=1e-4)
    for key, tensor in before.memory.items():
        if any(
            node_view.storage.tensor is not None and id(node_view.storage) == key
            for node in nodes
            for node_view in node.outs
        ):
            torch.testing.assert_close(
                after.memory[key].view(torch.float32),
                tensor.view(torch.float32),
                rtol=1e-4,
                atol=1e-4,
                equal_nan=True,
            )
    assert len(fused) == left, [getattr(n, "name", "elementwise") for n in fused]
    return fused


@pytest.fixture
def factors() -> tuple[View, View]:
    return given(torch.randn(6, 5)), given(torch.randn(5, 7))


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh", "gelu", "silu"])
@pytest.mark.parametrize("bias", [False, True])
def test_an_activation_joins_its_product(name: str, bias: bool, factors: tuple[View, View]) -> None:
    c, y = planned(6, 7), planned(6, 7)
    addend = given(torch.randn(7)).expand((6, 7)) if bias else None
    make = product(c, *factors, addend=addend)
    check([make, elementwise(y, name, c)], 1, y)
    check([make, elementwise(c, name, c)], 1, c)
    batched = y.with_shape((2, 3, 7), (21, 7, 1))
    check([make, elementwise(batched, name, c.with_shape((2, 3, 7), (21, 7, 1)))], 1, y)


@pytest.mark.parametrize("name", sorted(PRODUCTS_AND_SUMS))
def test_a_gradient_joins_its_product(name: str, factors: tuple[View, View]) -> None:
    c, dx, saved = planned(6, 7), planned(6, 7), given(torch.randn(6, 7).sigmoid())
    check([product(c, *factors), elementwise(dx, name, c, saved)], 1, dx)
    check([product(c, *factors), elementwise(c, name, c, saved)], 1, c)
    check([product(c, *factors), elementwise(dx, name, saved, c)], 2, dx)
    gate = elementwise(dx, "gate", c, saved, 0)
    check([product(c, *factors), gate], 1, dx)
    check([product(c, *factors), elementwise(dx, "gate", c, saved, 0.5)], 2, dx)


def test_a_bias_and_then_an_activation(factors: tuple[View, View]) -> None:
    c, z, y = planned(6, 7), planned(6, 7), planned(6, 7)
    bias, full = given(torch.randn(7)), given(torch.randn(6, 7))
    check([product(c, *factors), elementwise(z, "add", c, bias), elementwise(y, "tanh", z)], 1, y)
    check([product(c, *factors), elementwise(z, "add", bias, c), elementwise(z, "relu", z)], 1, z)
    check([product(c, *factors), elementwise(z, "add", c, full)], 2, z)
    check([product(c, *factors), elementwise(z, "add", c, bias), elementwise(y, "add", z, bias)], 2, y)


def test_what_went_into_an_activation_is_kept_for_others(factors: tuple[View, View]) -> None:
    c, y, g = planned(6, 7), planned(6, 7), planned(6, 7)
    make = [product(c, *factors), elementwise(y, "gelu", c)]
    fused = check([*make, elementwise(g, "gelu_backward", y, c)], 2, g)
    assert len(fused[0].outs) == 2
    check(make, 1, y, c)
    user = given(torch.zeros(6, 7))
    check([product(user, *factors), elementwise(y, "relu", user)], 1, y)
    saved = given(torch.rand(6, 7))
    check([product(user, *factors), elementwise(y, "tanh_backward", user, saved)], 2, y)


def test_not_where_memory_is_wanted_in_between(factors: tuple[View, View]) -> None:
    c, y, other = planned(6, 7), planned(6, 7), planned(6, 7)
    user, saved = given(torch.randn(6, 7)), given(torch.rand(6, 7))
    make, act = product(c, *factors), elementwise(user, "relu", c)
    check([make, elementwise(other, "tanh", user), act], 3, other)
    check([make, elementwise(user, "tanh", saved), act], 3)
    check([make, elementwise(other, "tanh", saved), act], 2, other)
    slope = elementwise(y, "relu_gradient", c, saved)
    check([make, elementwise(saved, "tanh", other_user := given(torch.randn(6, 7))), slope], 3, y)
    assert other_user.numel == 42
    # The result overwrites a factor, or the value needed for the gradient.
    square = given(torch.randn(6, 6)), given(torch.randn(6, 6))
    d = planned(6, 6)
    check([product(d, *square), elementwise(square[0], "relu", d)], 2)
    check([product(c, *factors), elementwise(saved, "relu_gradient", c, saved)], 1)


def test_an_epilogue_joins_only_if_it_covers_the_whole_result(factors: tuple[View, View]) -> None:
    c, y, half = planned(6, 7), planned(6, 7), planned(3, 7)
    check([product(c, *factors), elementwise(half, "relu", c.with_shape((3, 7), (7, 1)))], 2, half)
    turned = c.with_shape((7, 6), (1, 7))
    check([product(c, *factors), elementwise(planned(7, 6), "relu", turned)], 2, c)
    check([product(c, *factors), elementwise(y, "relu", ("add", c, 1))], 2, y)
    wide = planned(6, 7, dtype=torch.float64)
    check([product(c, *factors), Elementwise(wide, ("relu", c), torch.float64)], 2, wide)


def loss_nodes(reduction: int, classes: int = 5) -> tuple[list[Node], View, View]:
    y, target = given(torch.randn(9, classes).log_softmax(1)), torch.randint(classes, (9,))
    rows = 9 if reduction == 0 else None
    g = given(torch.randn(rows) if rows else torch.randn(()))
    total, gradient, dx = given(torch.tensor(7.0)), planned(9, classes), planned(9, classes)
    low = Lowering()
    args = g, y, given(target), None, reduction, 2, total
    assert lower(low, "nll_loss_backward.default", gradient, args, {})
    back = gradient, y, 1, torch.float32
    assert lower(low, "_log_softmax_backward_data.default", dx, back, {})
    return low.nodes, gradient, dx


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_the_gradient_of_a_classifier(reduction: int, isa: str) -> None:
    nodes, gradient, dx = loss_nodes(reduction)
    check(nodes, 1, dx)
    check(nodes, 2, dx, gradient)
    other = planned(9, 5)
    check([*nodes, elementwise(other, "tanh", gradient)], 3, dx, other)
    many, _, dx = loss_nodes(reduction, 700)
    check(many, 1, dx)


@pytest.mark.parametrize("seed", range(200))
def test_random_programs(seed: int) -> None:
    """Products, activations, gradients and sums in any order on a few pieces of memory, some of them the
    user's, in place or not."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    n = 4
    user = [given(0.5 * torch.randn(n, n)) for _ in range(3)]
    own = [planned(n, n) for _ in range(4)]
    rows = [given(torch.randn(n)) for _ in range(2)]
    nodes: list[Node] = [elementwise(view, "mul", user[i % 3], 0.5 + i) for i, view in enumerate(own)]
    for _ in range(14):
        pool = user + own
        kind = rng.choice(["product", "product", "unary", "gradient", "row", "add"])
        out = rng.choice(pool)
        last = nodes[-1].outs[0]
        x = last if rng.random() < 0.7 else rng.choice(pool)
        if kind == "product":
            left, right = (v for v in rng.choices([v for v in pool if v is not out], k=2))
            nodes.append(product(out, left, right))
        elif kind == "unary":
            nodes.append(elementwise(out, rng.choice(["relu", "sigmoid", "tanh"]), x))
        elif kind == "gradient":
            name = rng.choice(["relu_gradient", "tanh_backward", "sigmoid_gradient"])
            nodes.append(elementwise(out, name, x, rng.choice(pool)))
        elif kind == "row":
            nodes.append(elementwise(out, "add", x, rng.choice(rows)))
        else:
            nodes.append(elementwise(out, "mul", ("add", x, rng.choice(pool)), 0.3))
    kept = [view for view in own if rng.random() < 0.4]
    fused = fuse_epilogues(nodes, [view.storage for view in kept])
    before, after = Run(nodes), Run(fused)
    for view in kept + user:
        torch.testing.assert_close(after.tensor(view), before.tensor(view), rtol=1e-3, atol=1e-3)
