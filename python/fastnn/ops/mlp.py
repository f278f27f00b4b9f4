"""A chain of linear layers, each with or without activation, as one autograd node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastnn import _dispatch
from fastnn._torch_internals import keeps_graph
from fastnn.ops import _cuda_linear
from fastnn.ops._function import NativeFunction, needed_gradients, refused
from fastnn.ops.linear import (
    ACTIVATIONS,
    FROM_PREACTIVATION,
    ComputedLinear,
    ComputedLinearFunction,
    check_activation,
    linear,
    run_small_chain,
    shape_reason,
    torch_activation_gradient,
)
from fastnn.ops.sizes import SMALL

_is_compiling = torch.compiler.is_compiling


class Layer(NamedTuple):
    """``act(x W^T + b)``; `weight` (N, K), `bias` (N,) or None, `activation` as in `functional.linear`."""

    weight: Tensor
    bias: Tensor | None
    activation: str | None


Activations = Sequence[str | None]


# A list with one entry per layer.
Values = list[Any]


Select = Callable[[Sequence[Any]], tuple[Any, ...]]


class _Saved(NamedTuple):
    """What a chain's forward keeps for its backward; None replaces what is not kept."""

    # Of (input, *weights, *outputs, *preactivations, None), what torch keeps for the same layers one by one:
    # the input of a layer whose weight needs a gradient, the weight of one whose input does, and, if anything
    # of it does, what the gradient of its activation is computed from.
    values: Select
    # Of (input, *weights, *biases, None) those that need a gradient. Double backward leads to them, and does
    # not read their values.
    wanted: Select
    preactivations: tuple[bool, ...]


@cache
def _to_save(needs: tuple[bool, ...], activations: tuple[str | None, ...]) -> _Saved:
    """`needs`: as in ``ctx.needs_input_grad``."""
    depth = len(activations)
    wants_input, _, *wants = needs
    wants_weight, wants_bias = wants[:depth], wants[depth:]
    # Whether a gradient goes through the input, and through the output of each layer.
    reached = [wants_input]
    for layer in zip(wants_weight, wants_bias, strict=True):
        reached.append(reached[-1] or any(layer))
    of_layers = list(zip(activations, reached[1:], [*wants_weight[1:], False], strict=True))
    preactivations = [activation in FROM_PREACTIVATION and reach for activation, reach, _ in of_layers]
    outputs = [
        above or (reach and activation is not None and activation not in FROM_PREACTIVATION)
        for activation, reach, above in of_layers
    ]
    kept = [wants_weight[0], *reached[:-1], *outputs, *preactivations]
    return _Saved(_select(kept), _select([wants_input, *wants]), tuple(preactivations))


def _select(wanted: Sequence[bool]) -> Select:
    return itemgetter(*[i if want else -1 for i, want in enumerate(wanted)])


def _forward(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Activations,
    saving: Sequence[bool] = (),
) -> tuple[Tensor, Values, Values]:
    """The output of the chain; those of its layers as matrices and, if `saving`, the preactivations."""
    flat = input if input.dim() == 2 else input.reshape(input.shape[:-1].numel(), input.shape[-1])
    rows = flat.shape[0]
    new = flat.new_empty
    outputs: Values = [new(rows, weight.shape[0]) for weight in weights]
    output = outputs[-1]
    if flat is not input:
        # The result must not be a view, or it could not be changed in place: a view of it is filled.
        output = new(*input.shape[:-1], output.shape[1])
        outputs[-1] = output.view(outputs[-1].shape)
    preactivations: Values = [None] * len(outputs)
    if True in saving:
        preactivations = [
            torch.empty_like(output) if save else None for output, save in zip(outputs, saving, strict=True)
        ]
    kernels = _dispatch.native(flat)
    if kernels == _dispatch.cpu:
        kernels.mlp_forward(flat, weights, biases, activations, outputs, preactivations)
    else:
        below = flat
        for i, layer in enumerate(zip(weights, biases, activations, strict=True)):
            _cuda_linear.forward(kernels, below, *layer, outputs[i], preactivations[i])
            below = outputs[i]
    return output, outputs, preactivations


class MlpFunction(NativeFunction):
    """Saves what `_Saved` says."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, input: Tensor, activations: tuple[str | None, ...], *parameters: Any
    ) -> Tensor:
        depth = len(activations)
        saved = _to_save(ctx.needs_input_grad, activations)
        weights = parameters[:depth]
        output, outputs, preactivations = _forward(
            input, weights, parameters[depth:], activations, saved.preactivations
        )
        outputs[-1] = output
        ctx.save_for_backward(*saved.values((input, *weights, *outputs, *preactivations, None)))
        # Saving inputs of the node makes no reference cycle; outputs would.
        ctx.wanted = saved.wanted((input, *parameters, None))
        ctx.chain = activations, input.shape
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        activations, input_shape = ctx.chain
        depth = len(activations)
        values = ctx.saved_tensors
        if len(input_shape) != 2:
            rows, out_features = input_shape[:-1].numel(), grad_output.shape[-1]
            values = [*values]
            values[0] = _as_matrix(values[0], rows, input_shape[-1])
            values[2 * depth] = _as_matrix(values[2 * depth], rows, out_features)
            grad_output = grad_output.reshape(rows, out_features)
        if _dispatch.use_native_backward("mlp_backward", grad_output, *values, cuda="linear"):
            wants_input, _, *wants = needed_gradients(ctx)
            new = grad_output.new_empty  # takes half as long for numbers as for a Size
            grad_input = new(grad_output.shape[0], input_shape[-1]) if wants_input else None
            grads = [new(*t.shape) if want else None for t, want in zip(ctx.wanted[1:], wants, strict=True)]
            grad_weights, grad_biases = grads[:depth], grads[depth:]
            if not keeps_graph():  # torch then frees what was saved
                ctx.wanted = None
            kernels = _dispatch.native(grad_output)
            call = kernels.mlp_backward if kernels == _dispatch.cpu else partial(_cuda_backward, kernels)
            call(
                *(grad_output, values[0], values[1 : 1 + depth]),
                *(values[1 + depth : 1 + 2 * depth], values[1 + 2 * depth :], activations),
                *(grad_input, grad_weights, grad_biases),
            )
        else:
            wants_input, _, *wants = ctx.needs_input_grad
            if torch.is_grad_enabled():
                values = _differentiable(ctx, values, grad_output)
            grad_input, grad_weights, grad_biases = _torch_backward(
                *(grad_output, values[0], values[1 : 1 + depth]),
                *(values[1 + depth : 1 + 2 * depth], values[1 + 2 * depth :], activations),
                *(wants_input, wants[:depth], wants[depth:]),
            )
        if grad_input is not None and len(input_shape) != 2:
            grad_input = grad_input.view(input_shape)
        return grad_input, None, *grad_weights, *grad_biases


def _as_matrix(t: Tensor | None, rows: int, columns: int) -> Tensor | None:
    return None if t is None else t.reshape(rows, columns)


def _cuda_backward(
    kernels: Any,
    grad: Tensor,
    input: Tensor | None,
    weights: Sequence[Any],
    outputs: Sequence[Any],
    preactivations: Sequence[Any],
    activations: Activations,
    grad_input: Tensor | None,
    grad_weights: Values,
    grad_biases: Values,
) -> None:
    """Layer by layer; each product for dX has the gradient of the activation below in its epilogue."""
    saved = [
        preactivations[i] if activation in FROM_PREACTIVATION else outputs[i]
        for i, activation in enumerate(activations)
    ]
    own, own_saved = activations[-1], None if activations[-1] is None else saved[-1]
    # No layer below the lowest one that needs a gradient needs its gradient in z.
    wanted = [
        i for i, grads in enumerate(zip(grad_weights, grad_biases, strict=True)) if grads != (None, None)
    ]
    last = 0 if grad_input is not None else min(wanted, default=len(activations))
    for i in reversed(range(last, len(activations))):
        below = activations[i - 1] if i > last else None
        grad_below = grad_input
        if i > last:
            grad_below = grad.new_empty(grad.shape[0], weights[i].shape[1])
        _cuda_linear.backward(
            kernels,
            *(grad, own_saved, own, outputs[i - 1] if i else input, weights[i]),
            *(grad_below, grad_weights[i], grad_biases[i]),
            *(saved[i - 1] if below is not None else None, below),
        )
        if grad_below is not None:
            grad = grad_below
        own = own_saved = None


def _differentiable(ctx: Any, values: Sequence[Any], grad_output: Tensor) -> Values:
    """What was saved, as functions of what needs a gradient: for double backward."""
    activations, input_shape = ctx.chain
    depth = len(activations)
    rows = grad_output.shape[0]
    input, *wanted = ctx.wanted
    below = values[0] if input is None else input.reshape(rows, input_shape[-1])
    result: Values = [below, *values[1:]]
    for i, activation in enumerate(activations):
        at_output, at_z = 1 + depth + i, 1 + 2 * depth + i
        if (below is None or not below.requires_grad) and wanted[i] is None and wanted[depth + i] is None:
            below = values[at_output]  # a constant
            continue
        weight, bias = values[1 + i] if wanted[i] is None else wanted[i], wanted[depth + i]
        n, k = (bias.shape[0], 0) if weight is None else weight.shape
        output = values[at_output]
        if output is None:  # no gradient needs its values
            output = grad_output.new_zeros(()).expand(rows, n)
        layer = ComputedLinear(activation, output, values[at_z], torch.Size((rows, k)))
        below, result[at_z] = ComputedLinearFunction.apply(below, weight, bias, layer)
        result[at_output] = below
    return result


def _torch_backward(
    grad: Tensor,
    input: Any,
    weights: Sequence[Any],
    outputs: Sequence[Any],
    preactivations: Sequence[Any],
    activations: Activations,
    wants_input: bool,
    wants_weight: Sequence[bool],
    wants_bias: Sequence[bool],
) -> tuple[Tensor | None, Values, Values]:
    """The gradients of input, weights and biases by torch's own ops: exact under double backward and vmap."""
    depth = len(activations)
    grad_weights: Values = [None] * depth
    grad_biases: Values = [None] * depth
    for i in reversed(range(depth)):
        activation = activations[i]
        if activation is not None:
            saved = preactivations if activation in FROM_PREACTIVATION else outputs
            grad = torch_activation_gradient(grad, saved[i], activation)
        if wants_weight[i]:
            grad_weights[i] = grad.t() @ (outputs[i - 1] if i else input)
        if wants_bias[i]:
            grad_biases[i] = grad.sum(0)
        if not (wants_input or any(wants_weight[:i]) or any(wants_bias[:i])):
            return None, grad_weights, grad_biases  # what is below may be missing
        grad = grad @ weights[i]
    return grad, grad_weights, grad_biases


def mlp(input: Tensor, layers: Sequence[Layer]) -> Tensor:
    r"""Run a chain of linear layers as one autograd node, forward and backward in one native call each.

    .. math:: h_l = \operatorname{act}_l(h_{l-1} W_l^\top + b_l),\qquad h_{-1} = x,\ y = h_{L-1}

    The gradients are those of :func:`fastnn.functional.linear`, layer by layer from the last to the first.
    What the kernels do not cover runs as one `linear` after the other.

    Args:
        input: ``(*, K)``; float32, float64, bfloat16 or float16.
        layers: at least one; the (N, K) of each weight continue one another.

    Returns:
        Tensor ``(*, N)`` of the last layer.

    Raises:
        ValueError: unknown activation, or no layers.
        RuntimeError: shapes or dtypes that do not fit together.
    """
    if not layers:
        raise ValueError("mlp: expected at least one layer, got none")
    return mlp_chain(input, *map(list, zip(*layers, strict=True)))


def mlp_chain(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Activations,
) -> Tensor:
    """:func:`mlp` for layers whose parts are given as separate lists."""
    if not _is_compiling():
        output: Tensor | None = run_small_chain(input, weights, biases, activations)
        if output is not None:
            _dispatch.decide("mlp", SMALL)
            return output
    for activation in activations:
        if activation not in ACTIVATIONS:
            check_activation("mlp", activation)
    reason = _dispatch.torch_reason(input, *weights, *biases, cuda="linear")
    if reason is None:
        for weight, bias in zip(weights, biases, strict=True):
            reason = reason or shape_reason(input, weight, bias)
    if reason is not None:
        return _layer_by_layer(input, weights, biases, activations)
    _dispatch.decide("mlp", None)
    try:
        if torch.is_grad_enabled() and (
            weights[0].requires_grad  # nearly always decides
            or any(t is not None and t.requires_grad for t in (input, *weights, *biases))
        ):
            output = MlpFunction.apply(input, tuple(activations), *weights, *biases)
            return output
        return _forward(input, weights, biases, activations)[0]
    except RuntimeError as error:
        return refused("mlp", error, lambda: _layer_by_layer(input, weights, biases, activations))


def _layer_by_layer(
    input: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], activations: Activations
) -> Tensor:
    for layer in zip(weights, biases, activations, strict=True):
        input = linear(input, *layer)
    return input
