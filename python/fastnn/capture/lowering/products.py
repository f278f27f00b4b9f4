"""Products of matrices and vectors.

The instruction ``product`` (csrc/program/products_cpu.cpp):
``z = alpha a b + beta d``, ``c = activation(z)`` or ``activation'(saved) z``, also for a batch of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import Instruction, View
from fastnn.capture.lowering.table import Lowering, lowers

# As in the enum of csrc/core/activation/activation.h.
ACTIVATIONS = {
    name: code for code, name in enumerate(("none", "relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu"))
}

_ADDEND, _SAVED, _KEEPS_Z = 1, 2, 4


@dataclass
class Product:
    """The fields of a product instruction, by name."""

    c: View
    a: View
    b: View
    z: View | None = None
    addend: View | None = None
    saved: View | None = None
    alpha: float = 1.0
    beta: float = 1.0
    activation: str = "none"

    def instruction(self) -> Instruction:
        """As an instruction."""
        parts = 0
        for flag, view in ((_ADDEND, self.addend), (_SAVED, self.saved), (_KEEPS_Z, self.z)):
            parts |= flag if view is not None else 0
        outs = [view for view in (self.c, self.z) if view is not None]
        ins = [view for view in (self.a, self.b, self.addend, self.saved) if view is not None]
        return Instruction(
            "product", outs, ins, [self.alpha, self.beta], [ACTIVATIONS[self.activation], parts]
        )

    @staticmethod
    def read(node: object) -> Product | None:
        """From an instruction, if it is a product."""
        if not isinstance(node, Instruction) or node.name != "product":
            return None
        activation, parts = node.code
        outs, ins = list(node.outs), list(node.ins)
        product = Product(outs[0], ins[0], ins[1], alpha=node.numbers[0], beta=node.numbers[1])
        product.z = outs[1] if parts & _KEEPS_Z else None
        rest = ins[2:]
        product.addend = rest.pop(0) if parts & _ADDEND else None
        product.saved = rest.pop(0) if parts & _SAVED else None
        product.activation = list(ACTIVATIONS)[activation]
        return product


def _emit(low: Lowering, product: Product) -> None:
    if product.c.dtype not in (torch.float32, torch.float64):
        raise Unsupported(f"a product of {product.c.dtype}")
    if product.alpha == 0:
        raise Unsupported("a product times 0")  # torch does not read the operands, so NaN is lost
    for view in (product.a, product.b):
        if view.storage is product.c.storage:
            raise Unsupported("a product written over its factor")
    if product.beta == 0:
        product.addend = None
    if product.addend is not None:
        if product.addend.shape != product.c.shape:
            product.addend = product.addend.expand(product.c.shape)
        if product.addend.storage is product.c.storage and product.addend != product.c:
            raise Unsupported("a product written over another part of what is added to it")
    low.nodes.append(product.instruction())


def _row(x: View) -> View:
    """A vector as a matrix of one row."""
    return x.with_shape((1, *x.shape), (0, *x.strides))


def _column(x: View) -> View:
    return x.with_shape((*x.shape, 1), (*x.strides, 0))


def _turned(x: View) -> View:
    return x.with_shape(x.shape[::-1], x.strides[::-1])


@lowers("mm.default", "bmm.default")
def _mm(low: Lowering, out: View, a: View, b: View) -> None:
    _emit(low, Product(out, a, b))


@lowers("addmm.default", "addmm_.default", "baddbmm.default", "baddbmm_.default")
def _addmm(
    low: Lowering, out: View, addend: View, a: View, b: View, *, beta: float = 1, alpha: float = 1
) -> None:
    _emit(low, Product(out, a, b, addend=addend, alpha=alpha, beta=beta))


@lowers("_addmm_activation.default")
def _addmm_activation(
    low: Lowering,
    out: View,
    addend: View,
    a: View,
    b: View,
    *,
    beta: float = 1,
    alpha: float = 1,
    use_gelu: bool = False,
) -> None:
    activation = "gelu" if use_gelu else "relu"
    _emit(low, Product(out, a, b, addend=addend, alpha=alpha, beta=beta, activation=activation))


@lowers("mv.default")
def _mv(low: Lowering, out: View, a: View, x: View) -> None:
    _emit(low, Product(_row(out), _row(x), _turned(a)))


@lowers("addmv.default", "addmv_.default")
def _addmv(
    low: Lowering, out: View, addend: View, a: View, x: View, *, beta: float = 1, alpha: float = 1
) -> None:
    if addend.shape != out.shape:
        raise Unsupported("addmv of another shape than its result's")
    _emit(low, Product(_row(out), _row(x), _turned(a), addend=_row(addend), alpha=alpha, beta=beta))


@lowers("dot.default", "vdot.default")
def _dot(low: Lowering, out: View, x: View, y: View) -> None:
    _emit(low, Product(_row(_row(out)), _row(x), _column(y)))


@lowers("addr.default", "addr_.default")
def _addr(
    low: Lowering, out: View, addend: View, x: View, y: View, *, beta: float = 1, alpha: float = 1
) -> None:
    _emit(low, Product(out, _column(x), _row(y), addend=addend, alpha=alpha, beta=beta))


@lowers("linear.default")
def _linear(low: Lowering, out: View, x: View, weight: View, bias: View | None = None) -> None:
    """Recorded as one op only without autograd, in inference mode."""
    if len(weight.shape) != 2 or not x.shape:
        raise Unsupported("a linear layer of one output without its dimension")
    if len(x.shape) == 1:
        x, out = _row(x), _row(out)
    if len(x.shape) > 2:
        if not (x.is_contiguous and out.is_contiguous):
            raise Unsupported("a linear layer on a batch that is not a matrix")
        (k, n), rows = (x.shape[-1], weight.shape[0]), 1
        for size in x.shape[:-1]:
            rows *= size
        x, out = x.with_shape((rows, k), (k, 1)), out.with_shape((rows, n), (n, 1))
    _emit(low, Product(out, x, _turned(weight), addend=bias))
