"""A chain of linear layers as one op: values, gradients, edges, errors, with every kernel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from reference import DTYPES, layouts
from torch import Tensor

import fastnn
from every_kernel import assert_reproducible, emulating
from fastnn import _dispatch
from fastnn.ops.linear import (
    ACTIVATIONS,
    FROM_PREACTIVATION,
    torch_activation,
    torch_activation_gradient,
)
from fastnn.ops.mlp import Layer, mlp

# sizes, activation after each layer
CHAINS = [
    ([7, 5], [None]),
    *(([7, 5], [activation]) for activation in ACTIVATIONS[1:]),
    *(([17, 64, 49, 6], [activation, activation, None]) for activation in ACTIVATIONS[1:]),
    ([784, 28, 10], ["relu", None]),
    ([5, 49, 33, 3], [None, "relu", "relu"]),
    ([5, 49, 33, 20, 30, 3], ["gelu", "tanh", None, "silu", "sigmoid"]),
    ([9, 31, 33, 20, 17], ["relu", "gelu_tanh", "relu", "gelu"]),
    ([6, 40, 50, 30, 4], [None, None, None, None]),
    ([3, 1, 100], ["relu", "silu"]),
    ([4, 0, 3], ["gelu", None]),
    ([0, 4, 3], ["tanh", "gelu"]),
]


def make(
    sizes: list[int],
    activations: Sequence[str | None],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    bias: bool = True,
) -> list[Layer]:
    return [
        Layer(
            tensor(n, k, dtype=dtype, device=device, scale=max(k, 1) ** -0.5).requires_grad_(),
            tensor(n, dtype=dtype, device=device).requires_grad_() if bias else None,
            activation,
        )
        for (k, n), activation in zip(pairwise(sizes), activations, strict=True)
    ]


def tensor(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    scale: float = 1.0,
) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype).to(device)


def leaves(layers: list[Layer]) -> list[Tensor]:
    return [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]


def wide(t: Tensor) -> Tensor:
    return t.detach().cpu().double()


def reference(x: Tensor, layers: list[Layer], dy: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients in float64, with what a chain keeps between layers rounded to the storage type.

    Rounding hidden outputs, z and gradients, as every implementation that keeps them in that type must,
    leaves only differences between sums, and evaluates the activations' gradients at the same values.
    """
    dtype = x.dtype
    inputs, saved = [wide(x)], []
    for weight, bias, activation in layers:
        z = F.linear(inputs[-1], wide(weight), None if bias is None else wide(bias))
        inputs.append(torch_activation(z, activation).to(dtype).double())
        saved.append(z.to(dtype).double() if activation in FROM_PREACTIVATION else inputs[-1])
    grad, grads = wide(dy), []
    for i in reversed(range(len(layers))):
        grad = torch_activation_gradient(grad, saved[i], layers[i].activation).to(dtype).double()
        grads[:0] = [grad.t() @ inputs[i]] + ([] if layers[i].bias is None else [grad.sum(0)])
        grad = grad @ wide(layers[i].weight)
    return inputs[-1], [grad, *grads]


def assert_near(actual: Tensor | None, expected: Tensor) -> None:
    # Errors of a sum propagate through the following layers; each layer's are about eps times the norm of its
    # terms, and a 16-bit value rounded the other way changes its successors by a unit or two.
    assert actual is not None
    eps = torch.finfo(actual.dtype).eps
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=0, atol=16 * eps * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "activations"), CHAINS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_matches_float64(
    sizes: list[int],
    activations: list[str | None],
    dtype: torch.dtype,
    bias: bool,
    every_device: torch.device,
) -> None:
    for rows in (1, 33, 0):
        layers = make(sizes, activations, dtype, every_device, bias)
        x = tensor(rows, sizes[0], dtype=dtype, device=every_device).requires_grad_()
        dy = tensor(rows, sizes[-1], dtype=dtype, device=every_device)
        y = mlp(x, layers)
        y.backward(dy)
        expected, grads = reference(x, layers, dy)
        assert y.dtype == dtype
        assert_near(y.detach(), expected)
        for leaf, grad in zip([x, *leaves(layers)], grads, strict=True):
            assert_near(leaf.grad, grad)


def test_every_layout_matches_float64(every_device: torch.device) -> None:
    layers = make([21, 30, 9], ["relu", None], torch.float32, every_device)
    for x in layouts(13, 21, torch.float32, every_device).values():
        for dy in layouts(13, 9, torch.float32, every_device).values():
            leaf = x.detach().requires_grad_()
            expected, grads = reference(x, layers, dy)
            y = mlp(leaf, layers)
            assert_near(y.detach(), expected)
            (grad,) = torch.autograd.grad(y, leaf, dy)
            assert_near(grad, grads[0])


@pytest.mark.each_value
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (4,), (0, 4), (2, 0, 4)])
@pytest.mark.parametrize(
    "activations",
    [
        *((activation, None) for activation in ACTIVATIONS),
        *((None, activation) for activation in ACTIVATIONS[1:]),
        ("gelu", "tanh"),
        ("sigmoid", "silu"),
        ("gelu_tanh", "relu"),
    ],
    ids=str,
)
def test_gradients_pass_gradcheck(
    shape: tuple[int, ...], activations: tuple[str | None, str | None], device: torch.device
) -> None:
    layers = make([4, 5, 3], activations, torch.float64, device)
    x = tensor(*shape, dtype=torch.float64, device=device).requires_grad_()

    def op(x: Tensor, *parameters: Tensor) -> Tensor:
        w0, b0, w1, b1 = parameters
        return mlp(x, [Layer(w0, b0, activations[0]), Layer(w1, b1, activations[1])])

    assert torch.autograd.gradcheck(op, (x, *leaves(layers)), fast_mode=emulating())
    assert torch.autograd.gradgradcheck(op, (x, *leaves(layers)), fast_mode=emulating())


@pytest.mark.parametrize("wanted", range(32))
def test_any_set_of_gradients(wanted: int, device: torch.device) -> None:
    layers = make([6, 5, 4], ["relu", None], torch.float32, device)
    tensors = [tensor(3, 6, device=device), *leaves(layers)]
    for i, t in enumerate(tensors):
        t.requires_grad_(bool(wanted & (1 << i)))
    y = mlp(tensors[0], layers)
    assert y.requires_grad == (wanted > 0)
    if wanted:
        dy = tensor(3, 4, device=device)
        y.backward(dy)
        _, grads = reference(tensors[0], layers, dy)
        for t, grad in zip(tensors, grads, strict=True):
            assert (t.grad is not None) == t.requires_grad
            if t.grad is not None:
                assert_near(t.grad, grad)


def test_batched_gradients_and_func_transforms(device: torch.device) -> None:
    layers = make([4, 5, 3], ["relu", None], torch.float64, device)
    for parameter in leaves(layers):
        parameter.requires_grad_(False)
    x = tensor(2, 4, dtype=torch.float64, device=device)

    def torch_chain(x: Tensor) -> Tensor:
        return F.linear(F.linear(x, *layers[0][:2]).relu(), *layers[1][:2])

    expected = torch.autograd.functional.jacobian(torch_chain, x)
    for vectorize in (False, True):
        got = torch.autograd.functional.jacobian(lambda x: mlp(x, layers), x, vectorize=vectorize)
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.func.jacrev(lambda x: mlp(x, layers))(x), expected)
    torch.testing.assert_close(torch.func.vmap(lambda x: mlp(x, layers))(x), torch_chain(x))


def test_backward_again_needs_retain_graph(device: torch.device) -> None:
    layers = make([4, 5, 3], ["relu", "relu"], torch.float32, device)
    y = mlp(tensor(2, 4, device=device), layers)
    y.sum().backward(retain_graph=True)
    first = layers[0].weight.grad.clone()  # type: ignore[union-attr]
    y.sum().backward()
    torch.testing.assert_close(layers[0].weight.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_in_place_changes_are_noticed_where_they_matter(device: torch.device) -> None:
    layers = make([4, 5, 3], ["relu", None], torch.float32, device)
    mlp(tensor(2, 4, device=device), layers).add_(
        1
    ).sum().backward()  # affine output: not needed for backward
    rectified = [layers[0], layers[1]._replace(activation="relu")]
    for changed in ("output", "weight"):
        y = mlp(tensor(2, 4, device=device), rectified)
        with torch.no_grad():
            (y if changed == "output" else layers[1].weight).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_nan_goes_where_torch_puts_it(every_device: torch.device) -> None:
    layers = make([4, 5, 3], ["relu", "relu"], torch.float32, every_device)
    x = tensor(3, 4, device=every_device)
    x[1, 2] = float("nan")
    y = mlp(x, layers)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


def assert_same_special_values(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    got = actual.cpu().double()
    finite = expected.isfinite()
    torch.testing.assert_close(got[~finite], expected[~finite], equal_nan=True)
    assert got[finite].isfinite().all()
    scale = expected[finite].abs().max().item() if finite.any() else 0.0
    atol = 16 * torch.finfo(actual.dtype).eps * scale  # as in `assert_near`
    torch.testing.assert_close(got[finite], expected[finite], rtol=0, atol=atol)


@pytest.mark.parametrize("place", ["input", "gradient", "weight", "bias"])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_of_special_values(
    activation: str | None, special: float, place: str, every_device: torch.device
) -> None:
    """They appear where torch's float64 has them: one value in the middle, and all that depend on it."""
    if activation == "gelu" and place != "gradient":
        special = float("nan")  # torch's own gelu(inf) is nan where it is vectorised
    layers = make([6, 19, 7, 3], [activation, activation, None], torch.float32, every_device)
    x = tensor(5, 6, device=every_device).requires_grad_()
    dy = tensor(5, 3, device=every_device)
    bias = layers[1].bias
    assert bias is not None
    with torch.no_grad():
        {"input": x[1], "gradient": dy[1], "weight": layers[1].weight[4], "bias": bias}[place][2] = special
    y = mlp(x, layers)
    y.backward(dy)
    expected, grads = reference(x, layers, dy)
    assert_same_special_values(y.detach(), expected)
    for leaf, grad in zip([x, *leaves(layers)], grads, strict=True):
        assert_same_special_values(leaf.grad, grad)


def test_the_same_bits_every_time(every_device: torch.device) -> None:
    rows, sizes = (40, [70, 66, 33, 10]) if emulating() else (130, [300, 257, 129, 10])
    layers = make(sizes, ["relu", "gelu", None], torch.float32, every_device)
    x, dy = tensor(rows, sizes[0], device=every_device), tensor(rows, 10, device=every_device)

    def run() -> list[Tensor]:
        y = mlp(x, layers)
        return [y.detach(), *torch.autograd.grad(y, leaves(layers), dy)]

    assert_reproducible(run, every_device)


def test_one_native_call_each_way(device: torch.device) -> None:
    if _dispatch.cpu is None:
        pytest.skip("no native module")
    layers = make([4, 5, 3], ["relu", None], torch.float32, device)
    seen = fastnn.explain(lambda: mlp(tensor(2, 4, device=device), layers).sum().backward()).decisions
    assert [(d.op, d.reason) for d in seen] == [("mlp", None), ("mlp_backward", None)]


def test_falls_back_layer_by_layer(device: torch.device) -> None:
    layers = make([4, 5, 3], ["relu", None], torch.float32, device)
    x = tensor(2, 4, device=device)
    expected = mlp(x, layers)
    with fastnn.disabled():
        seen = fastnn.explain(mlp, x, layers)
    torch.testing.assert_close(seen.result, expected)
    assert seen.decisions == (("linear", "fastnn is disabled"),) * 2


# On CUDA the layer itself raises the error.
INPUT = r"(mlp: input of layer {}|linear: input) has K={}, weight expects {}"


class TestErrors:
    def test_a_bad_activation_is_refused(self, device: torch.device) -> None:
        with pytest.raises(ValueError, match=r"mlp: activation must be None, .* or 'silu', got 'elu'"):
            mlp(tensor(2, 4, device=device), make([4, 3], ["elu"], torch.float32, device))

    def test_a_bad_input_is_refused(self, device: torch.device) -> None:
        with pytest.raises(RuntimeError, match=INPUT.format(0, 7, 4)):
            mlp(tensor(2, 7, device=device), make([4, 5, 3], ["relu", None], torch.float32, device))

    def test_no_layers_are_refused(self, device: torch.device) -> None:
        with pytest.raises(ValueError, match="expected at least one layer, got none"):
            mlp(tensor(2, 4, device=device), [])

    def test_layers_that_do_not_continue_one_another(self, device: torch.device) -> None:
        first, _ = make([4, 5, 3], ["relu", None], torch.float32, device)
        with pytest.raises(RuntimeError, match=INPUT.format(1, 5, 4)):
            mlp(tensor(2, 4, device=device), [first, first])

    def test_a_bad_bias_is_refused(self, device: torch.device) -> None:
        layers = make([4, 5, 3], ["relu", None], torch.float32, device)
        with pytest.raises(RuntimeError, match=r"(mlp|linear): bias has shape \(4,\), expected \(3,\)"):
            mlp(tensor(2, 4, device=device), [layers[0], layers[1]._replace(bias=tensor(4, device=device))])
