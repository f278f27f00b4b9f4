"""linear: values, gradients, layouts, edges, errors, on every CPU variant and with the CUDA kernels."""

from __future__ import annotations

from itertools import islice, product

import pytest
import torch
import torch.nn.functional as F
from linear_cases import SHAPES, check, check_special_values, make, problem
from reference import DTYPES, layouts
from torch import Tensor

import fastnn
import fastnn.functional as FF
from every_kernel import assert_reproducible, emulating
from fastnn import _dispatch
from fastnn.ops.linear import ACTIVATIONS, torch_activation


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape: tuple[int, int, int], dtype: torch.dtype, every_device: torch.device) -> None:
    m, n, k = shape
    if emulating() and m * n * k > 2**22:
        pytest.skip("too large to emulate")
    check(*problem(shape, dtype, every_device), "relu")
    check(*problem(shape, dtype, every_device, bias=False))
    if m * n * k <= (2**12 if emulating() else 2**22):
        for activation in (None, *ACTIVATIONS[2:]):
            check(*problem(shape, dtype, every_device), activation)
        check(*problem(shape, dtype, every_device, bias=False), "relu")


# The aligned one is copied in packs by the CUDA kernels; the large one needs several tiles.
@pytest.mark.parametrize("shape", [(19, 53, 37), (40, 48, 72), (70, 30, 200)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_matches_float64(
    shape: tuple[int, int, int], dtype: torch.dtype, every_device: torch.device
) -> None:
    m, n, k = shape
    bias = make((2 * n,), dtype, every_device)[::2]
    inputs, weights, outputs = (layouts(*sizes, dtype, every_device) for sizes in ((m, k), (n, k), (m, n)))
    x, w, _, dy = problem(shape, dtype, every_device)
    for name, strided in inputs.items():
        check(strided, weights[name], None, outputs[name], "relu")
    crossed = m == 19 and not emulating()
    for strided, weight in islice(product(inputs.values(), weights.values()), 0, None, 1 if crossed else 7):
        check(strided, weight, bias, dy, "relu")
    if crossed or m == 40:
        for strided in outputs.values():
            check(x, w, bias, strided, "relu")
            check(x, w, bias, strided, "gelu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (4,), (0, 4), (2, 0, 4), (2, 1, 2, 4)])
def test_gradients_pass_gradcheck(
    shape: tuple[int, ...], activation: str | None, device: torch.device
) -> None:
    leaves = [
        torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in (shape, (6, 4), (6,))
    ]

    def op(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return FF.linear(x, w, b, activation)

    assert torch.autograd.gradcheck(op, leaves, fast_mode=emulating())
    assert torch.autograd.gradgradcheck(op, leaves, fast_mode=emulating())


@pytest.mark.parametrize("wanted", range(8))
def test_computes_only_the_gradients_asked_for(wanted: int, device: torch.device) -> None:
    flags = [bool(wanted & bit) for bit in (1, 2, 4)]
    tensors = [
        make(shape, torch.float32, device).requires_grad_(flag)
        for shape, flag in zip([(3, 4), (5, 4), (5,)], flags, strict=True)
    ]
    y = FF.linear(*tensors, activation="relu")
    assert y.requires_grad == any(flags)
    if not any(flags):
        return
    everything = FF.linear(*(t.detach().requires_grad_() for t in tensors), activation="relu")
    with torch.no_grad():  # the results of the op's own backward, before autograd drops unneeded ones
        given, complete = (z.grad_fn.apply(torch.ones_like(z), None) for z in (y, everything))  # type: ignore[union-attr]
    assert [grad is not None for grad in given] == [*flags, False]
    for grad, other in zip(given, complete, strict=True):
        # Alone, db may be summed in another order.
        assert grad is None or torch.allclose(grad, other, rtol=1e-6)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_go_where_torch_puts_them(
    special: float, dtype: torch.dtype, every_device: torch.device
) -> None:
    check_special_values(special, dtype, every_device)


def test_gradient_passes_where_relu_of_nan_is_nan(every_device: torch.device) -> None:
    x = torch.tensor([[float("nan")], [1.0], [-1.0]], device=every_device, requires_grad=True)
    w = torch.ones(1, 1, device=every_device)
    FF.linear(x, w, None, "relu").backward(torch.full((3, 1), 2.0, device=every_device))
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [2.0, 2.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_gradients_of_activations(activation: str, dtype: torch.dtype, every_device: torch.device) -> None:
    z = torch.cat([torch.linspace(-12, 12, 10_001, dtype=torch.float64), torch.zeros(1)]).to(dtype)
    leaf, z = z[:, None].to(every_device).requires_grad_(), z.double().requires_grad_()
    one = torch.ones(1, 1, dtype=dtype, device=every_device)
    FF.linear(leaf, one, None, activation).sum().backward()
    if activation == "gelu_tanh":  # torch's own 1 - tanh^2 loses 22 eps, sigmoid's derivative 44
        w = (8 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)
        (slope,) = torch.autograd.grad(w.sum(), z)
        expected = w.sigmoid() + z * w.sigmoid() * (-w).sigmoid() * slope
    else:
        (expected,) = torch.autograd.grad(torch_activation(z, activation).sum(), z)
    assert leaf.grad is not None
    # tanh' = 1 - y^2 doubles the rounding of y; the others are sums of two or three terms of at most 1.2. In
    # float64 the reference has errors too: torch's silu loses z eps where 1 - sigmoid(z) cancels.
    error = (leaf.grad[:, 0].cpu().double() - expected).abs().max()
    assert error <= (16 if dtype == torch.float64 else 4) * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: torch.dtype, every_device: torch.device) -> None:
    def run() -> list[Tensor]:
        results: list[Tensor] = []
        for activation in (None, "relu", "gelu"):
            y = FF.linear(*leaves, activation=activation)
            results += [y.detach(), *torch.autograd.grad(y, leaves, dy)]
        return results

    for shape in [(40, 66, 130), (33, 17, 70)] if emulating() else [(301, 233, 700)]:
        *tensors, dy = problem(shape, dtype, every_device)
        leaves = [t.requires_grad_() for t in tensors if t is not None]
        assert_reproducible(run, every_device)


@pytest.mark.parametrize("threads", [3, 4, 5, 8, 16])
def test_more_threads_than_tiles(threads: int) -> None:
    """However few tiles a product has, each thread gets some or none; sums of integers are exact."""
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


def layer(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A small input and a weight, both requiring gradients."""
    return make((6, 5), dtype, device).requires_grad_(), make((7, 5), dtype, device).requires_grad_()


def test_backward_twice_and_expanded_gradient(device: torch.device) -> None:
    x, w = layer(device)
    y = FF.linear(x, w, None, "relu")
    y.sum().backward(retain_graph=True)
    assert x.grad is not None
    first = x.grad.clone()
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * first)


def test_changing_the_output_in_place_is_noticed(device: torch.device) -> None:
    y = FF.linear(*layer(device), None, "relu")
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_gelu_gives_may_be_changed_in_place(device: torch.device) -> None:
    # As in torch: its gradient is computed from z.
    x, w = layer(device)
    FF.linear(x, w, None, "gelu").add_(1).sum().backward()
    (expected,) = torch.autograd.grad(F.gelu(F.linear(x, w)).sum(), x)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_a_penalty_on_the_gradient(activation: str, device: torch.device) -> None:
    # The second backward gets the gradients in y and in z together, without create_graph.
    x, w = layer(device, torch.float64)
    grads = []
    for op in (FF.linear, lambda x, w, b, act: torch_activation(F.linear(x, w, b), act)):
        y = op(x, w, None, activation)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        grads.append(torch.autograd.grad(slope.square().sum() + y.square().sum(), (x, w)))
    torch.testing.assert_close(grads[0], grads[1])


def test_it_runs_natively(device: torch.device) -> None:
    if _dispatch.cpu is None:
        pytest.skip("no native module")
    seen = fastnn.explain(lambda: FF.linear(*layer(device)).sum().backward())
    assert [(d.op, d.reason) for d in seen.decisions] == [("linear", None), ("linear_backward", None)]


class TestErrors:
    def test_a_bad_activation_is_refused(self) -> None:
        with pytest.raises(
            ValueError, match=r"linear: activation must be None, 'relu', .* or 'silu', got 'tanhh'"
        ):
            FF.linear(torch.randn(2, 3), torch.randn(4, 3), activation="tanhh")

    def test_inner_dimension(self, device: torch.device) -> None:
        w = torch.randn(4, 784, device=device)
        with pytest.raises(RuntimeError, match=r"linear: input has K=512, weight expects 784"):
            FF.linear(torch.randn(2, 512, device=device), w)
        with pytest.raises(RuntimeError, match=r"linear: input has K=5, weight expects 784"):
            FF.linear(torch.randn(2, 2, 5, device=device), w)

    def test_a_bad_bias_is_refused(self, device: torch.device) -> None:
        x, w = layer(device)
        with pytest.raises(RuntimeError, match=r"linear: bias has shape \(5,\), expected \(7,\)"):
            FF.linear(x, w, torch.randn(5, device=device))

    def test_mixed_dtypes_are_refused(self, device: torch.device) -> None:
        x, w = layer(device)
        with pytest.raises(RuntimeError, match="dtype"):
            FF.linear(x, w.double())

    def test_a_scalar_input_is_refused(self, device: torch.device) -> None:
        with pytest.raises(RuntimeError):
            FF.linear(torch.tensor(1.0, device=device), layer(device)[1])

    def test_what_is_not_a_tensor_is_refused(self, device: torch.device) -> None:
        with pytest.raises(TypeError):
            FF.linear([1.0], layer(device)[1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weight", "bias"),
    [((5,), None), ((4, 5), ()), ((4, 5), (1,)), ((1, 5), (4,))],
    ids=["vector", "scalar bias", "bias of one element", "wide bias"],
)
def test_shapes_that_only_torch_takes(
    weight: tuple[int, ...], bias: tuple[int, ...] | None, device: torch.device
) -> None:
    x, w = torch.randn(3, 5, device=device), torch.randn(weight, device=device)
    b = None if bias is None else torch.randn(bias, device=device)
    if weight == (1, 5):
        # torch.nn.functional.linear does not broadcast here, and neither do we.
        with pytest.raises(RuntimeError):
            F.linear(x, w, b)
        with pytest.raises(RuntimeError):
            FF.linear(x, w, b)
        return
    torch.testing.assert_close(FF.linear(x, w, b), F.linear(x, w, b))


def test_disabled_gives_torch(device: torch.device) -> None:
    (x, w), b = layer(device), torch.randn(7, device=device)
    with fastnn.disabled():
        seen = fastnn.explain(FF.linear, x, w, b, "relu")
    assert torch.equal(seen.result, F.linear(x, w, b).relu())
    assert seen.decisions == (("linear", "fastnn is disabled"),)
