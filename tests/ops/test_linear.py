"""linear: values, gradients, layouts, edges, errors, on every CPU variant."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reference import DTYPES, assert_close_sum, layouts
from torch import Tensor

import fastnn
import fastnn.functional as FF
from fastnn import _backend
from fastnn.ops.linear import ACTIVATIONS, torch_activation, torch_activation_gradient

# Around one register tile (8 x 48, 6 x 16, 6 x 8), one vector, one pass along K (1024), more rows (1024) and
# columns (1536) than are worked on at a time, columns of A a multiple of 2 KB apart, and degenerate ones.
SHAPES = [
    (1, 1, 1),
    (2, 3, 5),
    (7, 15, 16),
    (8, 48, 17),
    (9, 49, 33),
    (13, 17, 31),
    (64, 10, 128),
    (33, 100, 1023),
    (17, 47, 1025),
    (70, 145, 2100),
    (1040, 1600, 40),
    (19, 512, 90),
    (1, 64, 300),
    (200, 1, 64),
    (0, 4, 3),
    (4, 0, 3),
    (4, 3, 0),
    (0, 0, 0),
]


def make(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def check_all(x: Tensor, w: Tensor, b: Tensor | None, dy: Tensor, activation: str | None) -> None:
    """Forward and the three gradients against float64."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    if b is not None:
        b = b.detach().requires_grad_()
    y = FF.linear(x, w, b, activation)
    (m, k), n = x.shape, w.shape[0]
    x64, w64 = x.detach().double(), w.detach().double()
    expected, magnitude = x64 @ w64.t(), x64.abs() @ w64.abs().t()
    if b is not None:
        expected, magnitude = expected + b.detach().double(), magnitude + b.detach().double().abs()
    expected = torch_activation(expected, activation)
    if activation not in (None, "relu"):
        magnitude = 1.2 * magnitude + 1  # slopes up to 1.13, and the activation's own few eps
    assert y.shape == (m, n)
    assert y.dtype == x.dtype
    assert y.is_contiguous()
    assert_close_sum(y.detach(), expected, magnitude, k)

    g = dy.double()
    if activation is not None:
        # At the values that the backward has; how near z is to x W^T + b shows in y.
        assert y.grad_fn is not None
        saved = y.grad_fn.saved_tensors[2].detach().double()  # type: ignore[attr-defined]
        g = torch_activation_gradient(g, saved, activation)
    g_magnitude = g.abs()
    if activation not in (None, "relu"):
        # A few eps of sums of terms about 1; in float64 those of the reference too, up to 17 (gelu_tanh).
        g_magnitude = dy.double().abs() * (8 if x.dtype == torch.float64 else 1)
    y.backward(dy)
    assert x.grad is not None
    assert w.grad is not None
    assert_close_sum(x.grad, g @ w64, g_magnitude @ w64.abs(), n)
    assert_close_sum(w.grad, g.t() @ x64, g_magnitude.t() @ x64.abs(), m)
    if b is not None:
        assert b.grad is not None
        assert_close_sum(b.grad, g.sum(0), g_magnitude.sum(0), m)


# The 16-bit types, where g is rounded before the products, are seen to with the other activations in
# test_mlp.py.
@pytest.mark.parametrize(
    ("dtype", "activation"),
    [
        *((dtype, activation) for dtype in DTYPES for activation in (None, "relu")),
        *((dtype, activation) for dtype in (torch.float32, torch.float64) for activation in ACTIVATIONS[2:]),
    ],
)
def test_matches_float64(isa: str, dtype: torch.dtype, activation: str | None) -> None:
    for m, n, k in SHAPES:
        check_all(
            make((m, k), dtype), make((n, k), dtype), make((n,), dtype), make((m, n), dtype), activation
        )
        check_all(make((m, k), dtype), make((n, k), dtype), None, make((m, n), dtype), activation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout(isa: str, dtype: torch.dtype) -> None:
    m, n, k = 19, 53, 37
    bias = make((2 * n,), dtype)[::2]
    for name, x in layouts(m, k, dtype).items():
        for w in layouts(n, k, dtype).values():
            check_all(x, w, bias, make((m, n), dtype), "relu")
        check_all(x, make((n, k), dtype), None, layouts(m, n, dtype)[name], "relu")
    for dy in layouts(m, n, dtype).values():
        check_all(make((m, k), dtype), make((n, k), dtype), bias, dy, "relu")
        if dtype in (torch.float32, torch.float64):
            check_all(make((m, k), dtype), make((n, k), dtype), bias, dy, "gelu")


def test_row_strides_that_alias_in_cache(isa: str) -> None:
    check_all(
        make((40, 1024), torch.float32),
        make((300, 1024), torch.float32),
        None,
        make((40, 300), torch.float32),
        "relu",
    )


def test_a_block_larger_than_the_packing_buffer(isa: str) -> None:
    # 16-bit rows are packed as float32 in blocks of 8 MB: 600 x 8192 takes three of them.
    x, w = make((600, 8192), torch.bfloat16), make((3, 8192), torch.bfloat16)
    y = FF.linear(x, w)
    assert_close_sum(y, x.double() @ w.double().t(), x.double().abs() @ w.double().abs().t(), 8192)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (4,), (0, 4), (2, 0, 4), (2, 1, 2, 4)])
def test_gradcheck(shape: tuple[int, ...], activation: str | None) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    w = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def op(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return FF.linear(x, w, b, activation)

    assert torch.autograd.gradcheck(op, (x, w, b))
    assert torch.autograd.gradgradcheck(op, (x, w, b))


@pytest.mark.parametrize("wanted", range(8))
def test_computes_only_the_gradients_asked_for(wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, ...]] = []

    class Spy:
        def __getattr__(self, name: str) -> object:
            return getattr(native, name)

        def linear_backward(self, dy, saved, activation, x, w, dx, dw, db) -> None:  # type: ignore[no-untyped-def]
            asked.append((dx is not None, dw is not None, db is not None))
            native.linear_backward(dy, saved, activation, x, w, dx, dw, db)

    native = _backend.cpu
    if native is None:
        pytest.skip("no native module")
    monkeypatch.setattr(_backend, "cpu", Spy())
    flags = [bool(wanted & bit) for bit in (1, 2, 4)]
    tensors = [torch.randn(s).requires_grad_(f) for s, f in zip([(3, 4), (5, 4), (5,)], flags, strict=True)]
    y = FF.linear(*tensors, activation="relu")
    assert y.requires_grad == any(flags)
    if any(flags):
        y.sum().backward()
        assert asked == [tuple(flags)]
    assert [t.grad is not None for t in tensors] == flags


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_special_values_go_where_torch_puts_them(isa: str, special: float) -> None:
    for position in [(0, 0), (3, 16), (8, 30)]:
        x, w, b = torch.randn(9, 31), torch.randn(50, 31), torch.randn(50)
        x[position] = special
        for activation in ACTIVATIONS:
            expected = torch_activation(F.linear(x, w, b), activation)
            if activation == "gelu":  # torch's own gelu(inf) is nan where it is vectorised
                expected[F.linear(x, w, b) == float("inf")] = float("inf")
            torch.testing.assert_close(FF.linear(x, w, b, activation), expected, equal_nan=True)


def test_gradient_passes_where_relu_of_nan_is_nan(isa: str) -> None:
    x = torch.tensor([[float("nan")], [1.0], [-1.0]], requires_grad=True)
    w = torch.ones(1, 1)
    FF.linear(x, w, None, "relu").backward(torch.full((3, 1), 2.0))
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [2.0, 2.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_gradients_of_activations(isa: str, activation: str, dtype: torch.dtype) -> None:
    z = torch.cat([torch.linspace(-12, 12, 10_001, dtype=torch.float64), torch.zeros(1)]).to(dtype)
    leaf, z = z[:, None].clone().requires_grad_(), z.double().requires_grad_()
    FF.linear(leaf, torch.ones(1, 1, dtype=dtype), None, activation).sum().backward()
    if activation == "gelu_tanh":  # torch's own 1 - tanh^2 loses 22 eps, sigmoid's derivative 44
        w = (8 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)
        (slope,) = torch.autograd.grad(w.sum(), z)
        expected = w.sigmoid() + z * w.sigmoid() * (-w).sigmoid() * slope
    else:
        (expected,) = torch.autograd.grad(torch_activation(z, activation).sum(), z)
    assert leaf.grad is not None
    # tanh' = 1 - y^2 doubles the rounding of y; the others are sums of two or three terms of at most 1.2. In
    # float64 that of the reference comes on top: torch's silu loses z eps where 1 - sigmoid(z) cancels.
    error = (leaf.grad[:, 0].double() - expected).abs().max()
    assert error <= (16 if dtype == torch.float64 else 4) * torch.finfo(dtype).eps


def test_same_bits_for_every_thread_count(isa: str) -> None:
    threads = torch.get_num_threads()
    x, w, b = make((301, 700), torch.float32), make((233, 700), torch.float32), make((233,), torch.float32)
    dy = make((301, 233), torch.float32)
    results = []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results_of_count: list[Tensor] = []
            leaves = [t.clone().requires_grad_() for t in (x, w, b)]
            for activation in ("relu", "gelu"):
                y = FF.linear(*leaves, activation=activation)
                results_of_count += [y.detach(), *torch.autograd.grad(y, leaves, dy)]
            results.append(results_of_count)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("threads", [3, 4, 5, 8, 16])
def test_more_threads_than_tiles(threads: int) -> None:
    """However few tiles a product has, each thread gets some or none at all; sums of integers are exact."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for rows in (1, 3, 5, 6, 7, 11):
            for panels in (1, 2, 3, 4, 5):
                m, n = 8 * rows - 1, 48 * panels - 5
                k = threads * 2**17 // (m * n) + 1  # enough work for all of them
                dy, x = torch.randint(-2, 3, (k, m)).float(), torch.randint(-2, 3, (k, n)).float()
                weight = torch.zeros(m, n, requires_grad=True)
                (dw,) = torch.autograd.grad(FF.linear(x, weight), weight, dy)
                assert torch.equal(dw, dy.t() @ x)
                assert torch.equal(FF.linear(x.t().contiguous(), dy.t().contiguous()), x.t() @ dy)
    finally:
        torch.set_num_threads(before)


def test_backward_twice_and_expanded_gradient() -> None:
    x, w = torch.randn(6, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    y = FF.linear(x, w, None, "relu")
    y.sum().backward(retain_graph=True)
    assert x.grad is not None
    first = x.grad.clone()
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * first)


def test_changing_the_output_in_place_is_noticed() -> None:
    x, w = torch.randn(6, 5, requires_grad=True), torch.randn(7, 5)
    y = FF.linear(x, w, None, "relu")
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_gelu_gives_may_be_changed_in_place() -> None:
    # As in torch: its gradient is taken from z.
    x, w = torch.randn(6, 5, requires_grad=True), torch.randn(7, 5)
    FF.linear(x, w, None, "gelu").add_(1).sum().backward()
    (expected,) = torch.autograd.grad(F.gelu(F.linear(x, w)).sum(), x)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_a_penalty_on_the_gradient(activation: str) -> None:
    # The second backward meets the gradient in y and the one in z together, without create_graph.
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    grads = []
    for op in (FF.linear, lambda x, w, b, act: torch_activation(F.linear(x, w, b), act)):
        y = op(x, w, None, activation)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        grads.append(torch.autograd.grad(slope.square().sum() + y.square().sum(), (x, w)))
    torch.testing.assert_close(grads[0], grads[1])


def test_runs_natively() -> None:
    if _backend.cpu is None:
        pytest.skip("no native module")
    x, w = torch.randn(6, 5, requires_grad=True), torch.randn(7, 5)
    seen: list[_backend.Decision] = []
    with _backend.recording(seen.append):
        FF.linear(x, w).sum().backward()
    assert [(d.op, d.reason) for d in seen] == [("linear", None), ("linear_backward", None)]


class TestErrors:
    def test_activation(self) -> None:
        with pytest.raises(
            ValueError, match=r"linear: activation must be None, 'relu', .* or 'silu', got 'tanhh'"
        ):
            FF.linear(torch.randn(2, 3), torch.randn(4, 3), activation="tanhh")

    def test_inner_dimension(self) -> None:
        with pytest.raises(RuntimeError, match=r"linear: input has K=512, weight expects 784"):
            FF.linear(torch.randn(2, 512), torch.randn(4, 784))

    def test_inner_dimension_of_a_batch(self) -> None:
        with pytest.raises(RuntimeError, match=r"linear: input has K=5, weight expects 3"):
            FF.linear(torch.randn(2, 2, 5), torch.randn(4, 3))

    def test_bias(self) -> None:
        with pytest.raises(RuntimeError, match=r"linear: bias has shape \(5,\), expected \(4,\)"):
            FF.linear(torch.randn(2, 3), torch.randn(4, 3), torch.randn(5))

    def test_mixed_dtypes(self) -> None:
        with pytest.raises(RuntimeError, match="dtype"):
            FF.linear(torch.randn(2, 3), torch.randn(4, 3).double())

    def test_scalar_input(self) -> None:
        with pytest.raises(RuntimeError):
            FF.linear(torch.tensor(1.0), torch.randn(4, 3))

    def test_not_a_tensor(self) -> None:
        with pytest.raises(TypeError):
            FF.linear([1.0], torch.randn(4, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weight", "bias"),
    [((5,), None), ((4, 5), ()), ((4, 5), (1,)), ((1, 5), (4,))],
    ids=["vector", "scalar bias", "bias of one element", "wide bias"],
)
def test_shapes_that_only_torch_takes(weight: tuple[int, ...], bias: tuple[int, ...] | None) -> None:
    x, w = torch.randn(3, 5), torch.randn(weight)
    b = None if bias is None else torch.randn(bias)
    if weight == (1, 5):
        # torch.nn.functional.linear broadcasts nothing here: neither do we.
        with pytest.raises(RuntimeError):
            F.linear(x, w, b)
        with pytest.raises(RuntimeError):
            FF.linear(x, w, b)
        return
    torch.testing.assert_close(FF.linear(x, w, b), F.linear(x, w, b))


def test_disabled_gives_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b = torch.randn(6, 5), torch.randn(7, 5), torch.randn(7)
    monkeypatch.setattr(_backend, "cpu", object())  # any native call would fail
    with fastnn.disabled():
        assert torch.equal(FF.linear(x, w, b, "relu"), F.linear(x, w, b).relu())
