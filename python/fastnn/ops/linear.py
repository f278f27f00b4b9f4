"""Linear layer with bias and activation fused into the product."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _dispatch
from fastnn.ops import _cuda_linear
from fastnn.ops._function import NativeFunction, needed_gradients, refused
from fastnn.ops.sizes import SMALL, small_layers

_is_compiling = torch.compiler.is_compiling

ACTIVATIONS = (None, "relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu")
# Activations whose gradient is computed from their input, not from their output.
FROM_PREACTIVATION = frozenset({"gelu", "gelu_tanh", "silu"})


def check_activation(op: str, activation: str | None) -> None:
    """Raise ValueError unless `activation` is one that the product can fuse."""
    if activation not in ACTIVATIONS:
        *names, last = map(repr, ACTIVATIONS)
        raise ValueError(f"{op}: activation must be {', '.join(names)} or {last}, got {activation!r}")


def torch_activation(z: Tensor, activation: str | None) -> Tensor:
    """The activation by torch's own op; compiles in TorchScript."""
    if activation is None:
        return z
    if activation == "relu":
        return F.relu(z)
    if activation == "sigmoid":
        return torch.sigmoid(z)
    if activation == "tanh":
        return torch.tanh(z)
    if activation == "silu":
        return F.silu(z)
    return F.gelu(z, approximate="tanh" if activation == "gelu_tanh" else "none")


_run_small, run_small_chain = small_layers(torch_activation)


def torch_activation_gradient(grad: Tensor, saved: Tensor, activation: str | None) -> Tensor:
    """The gradient with respect to the activation's input, by torch's own differentiable op.

    Args:
        grad: the gradient after the activation.
        saved: the input of those in `FROM_PREACTIVATION`, the output of others.
        activation: one of `ACTIVATIONS`.
    """
    aten = torch.ops.aten
    if activation is None:
        return grad
    result: Tensor
    if activation == "relu":
        result = aten.threshold_backward(grad, saved, 0)
    elif activation == "sigmoid":
        result = aten.sigmoid_backward(grad, saved)
    elif activation == "tanh":
        result = aten.tanh_backward(grad, saved)
    elif activation == "silu":
        s = saved.sigmoid()  # aten's silu_backward has no derivative
        result = grad * s * (1 + saved * (1 - s))
    else:
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        result = aten.gelu_backward(grad, saved, approximate=approximate)
    return result


def _forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, saving: bool
) -> tuple[Tensor, Tensor | None]:
    """The output, and, if `saving`, the activation's input if its gradient needs it."""
    *batch, in_features = input.shape
    out_features = weight.shape[0]
    output = input.new_empty(*batch, out_features)
    z = torch.empty_like(output) if saving and activation in FROM_PREACTIVATION else None
    matrices: list[Any] = [input, output, z]
    if len(batch) != 1:
        # The result must not be a view, or it could not be changed in place: so views of it are filled.
        rows = input.shape[:-1].numel()
        columns = (in_features, out_features, out_features)
        matrices = [None if t is None else t.reshape(rows, n) for t, n in zip(matrices, columns, strict=True)]
    flat, y, preactivation = matrices
    kernels = _dispatch.native(input)
    if kernels == _dispatch.cpu:
        kernels.linear_forward(flat, weight, bias, activation, y, preactivation)
    else:
        _cuda_linear.forward(kernels, flat, weight, bias, activation, y, preactivation)
    return output, z


class LinearFunction(NativeFunction):
    """Saves what the wanted gradients need: input for dW, weight for dX, and for the activation z or y.

    z is a second output, used only by double backward: through it autograd reaches what z was computed from,
    at no cost otherwise.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
    ) -> tuple[Tensor, Tensor | None]:
        output, z = _forward(input, weight, bias, activation, saving=True)
        _save(ctx, input, weight, activation, output, z, input.shape)
        return output, z

    @staticmethod
    def backward(  # noqa: D102
        ctx: Any, grad_output: Tensor | None, grad_z: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        input, weight, saved = ctx.saved_tensors
        wants_input, wants_weight, wants_bias, _ = ctx.needs_input_grad
        batch, in_features = ctx.input_shape[:-1].numel(), ctx.input_shape[-1]
        activation = ctx.activation
        if grad_z is not None:
            # The rest of a double backward: from here on a layer without activation.
            if grad_output is not None:
                grad_z = grad_z + torch_activation_gradient(grad_output, saved, activation)
            grad_output, saved, activation = grad_z, None, None
        if grad_output is None:
            return None, None, None, None
        out_features = grad_output.shape[-1]
        if not _dispatch.use_native_backward("linear_backward", grad_output, saved, cuda="linear"):
            grad = torch_activation_gradient(grad_output, saved, activation).reshape(batch, out_features)
            grad_input = (grad @ weight).view(ctx.input_shape) if wants_input else None
            grad_weight = grad.t() @ input.reshape(batch, in_features) if wants_weight else None
            return grad_input, grad_weight, grad.sum(0) if wants_bias else None, None
        wants_input, wants_weight, wants_bias, _ = needed_gradients(ctx)
        flat = grad_output.dim() == 2
        grad = grad_output if flat else grad_output.reshape(batch, out_features)
        new = grad.new_empty  # takes half as long for numbers as for a tuple of them
        grad_input = new(batch, in_features) if wants_input else None
        grad_weight = new(out_features, in_features) if wants_weight else None
        grad_bias = new(out_features) if wants_bias else None
        arguments = (
            grad,
            saved if flat or saved is None else saved.view(batch, out_features),
            activation,
            input if flat or input is None else input.reshape(batch, in_features),
            weight,
            grad_input,
            grad_weight,
            grad_bias,
        )
        kernels = _dispatch.native(grad)
        if kernels == _dispatch.cpu:
            kernels.linear_backward(*arguments)
        else:
            _cuda_linear.backward(kernels, *arguments)
        if not flat and grad_input is not None:
            grad_input = grad_input.view(ctx.input_shape)
        return grad_input, grad_weight, grad_bias, None


def _save(
    ctx: Any,
    input: Tensor | None,
    weight: Tensor | None,
    activation: str | None,
    output: Tensor,
    z: Tensor | None,
    input_shape: torch.Size,
) -> None:
    wants_input, wants_weight = ctx.needs_input_grad[:2]
    saved = None if activation is None else output if z is None else z
    ctx.save_for_backward(input if wants_weight else None, weight if wants_input else None, saved)
    ctx.set_materialize_grads(False)
    ctx.activation = activation
    ctx.input_shape = input_shape


class ComputedLinear(NamedTuple):
    """A layer that has been computed, of matrices."""

    activation: str | None
    output: Tensor
    z: Tensor | None
    input_shape: torch.Size


class ComputedLinearFunction(LinearFunction):
    """Returns the values of a computed layer as differentiable functions of their inputs.

    Of input, weight and bias, those are None that need no gradient and are not needed for one.
    """

    @staticmethod
    def forward(  # type: ignore[override]  # noqa: D102
        ctx: Any, input: Tensor | None, weight: Tensor | None, bias: Tensor | None, layer: ComputedLinear
    ) -> tuple[Tensor, Tensor | None]:
        # New tensors on the same memory: the saved ones stay outside the graph.
        output, z = layer.output.detach(), None if layer.z is None else layer.z.detach()
        _save(ctx, input, weight, layer.activation, output, z, layer.input_shape)
        return output, z


def shape_reason(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> str | None:
    """Why torch must run a layer whose tensors have these shapes, or None."""
    if weight is None or weight.dim() != 2 or input.dim() == 0:
        return "weight is not a matrix or input has no dimension"
    if bias is None:
        return None
    if bias.dim() != 1:
        return "bias is not a vector"
    if bias.numel() == 1 and weight.shape[0] != 1:
        return "bias is one number for all outputs"
    return None


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    r"""Affine map with an activation fused into the product.

    .. math:: y = \operatorname{act}(x W^\top + b)

    .. math:: g = \operatorname{act}'(z) \cdot dY,\quad dX = g W,\quad dW = g^\top x,\quad
        db = \textstyle\sum g

    Backward computes only the gradients that are needed. It computes act' from y, or for GELU and SiLU from
    :math:`z = x W^\top + b`, which forward then stores too. 16-bit inputs are summed in float32, and the
    activation is applied to the sum before it is rounded.

    On the CPU the relative error of the activation of a given z is at most 2 eps (sigmoid), 0.75 eps (tanh)
    or 4 eps :math:`(1 + \min(z, 0)^2)` (GELU, SiLU); values below e^-80 (float32; float64: e^-700) may
    become 0.

    On CUDA float32 keeps its accuracy (large products run on the tensor cores in three parts) unless
    ``torch.backends.cuda.matmul`` allows TF32. Large products of the other dtypes are torch's; bias and
    activation are then applied to the rounded result.

    Args:
        input: ``(*, K)``, any strides; float32, float64, bfloat16 or float16.
        weight: ``(N, K)``, dtype of ``input``.
        bias: ``(N,)`` or None.
        activation: None, ``"relu"``, ``"sigmoid"``, ``"tanh"``, ``"gelu"`` (exact), ``"gelu_tanh"`` (its tanh
            form) or ``"silu"``.

    Returns:
        Tensor ``(*, N)``, contiguous. With K = 0 it is ``act(b)``.

    Raises:
        ValueError: unknown activation.
        RuntimeError: shapes or dtypes that do not match.
    """
    if not _is_compiling():
        output: Tensor | None = _run_small(input, weight, bias, activation)
        if output is not None:
            _dispatch.decide("linear", SMALL)
            return output
    check_activation("linear", activation)
    reason = _dispatch.torch_reason(input, weight, bias, cuda="linear") or shape_reason(input, weight, bias)
    if not _dispatch.decide("linear", reason):
        return torch_activation(F.linear(input, weight, bias), activation)
    try:
        if torch.is_grad_enabled() and (
            input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        ):
            output = LinearFunction.apply(input, weight, bias, activation)[0]
            return output
        return _forward(input, weight, bias, activation, saving=False)[0]
    except RuntimeError as error:
        return refused("linear", error, lambda: torch_activation(F.linear(input, weight, bias), activation))
