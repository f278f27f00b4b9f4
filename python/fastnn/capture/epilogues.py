"""Fuses into a product what is done with each of its values next, and the gradients of a classifier's loss.

A product has its values in registers once: an activation, its gradient or a bias costs less there than in a
pass of its own. (Adding a whole matrix does not: a separate pass is as fast.)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from fastnn.capture.accesses import Accesses
from fastnn.capture.ir import Elementwise, Expr, Instruction, Node, Storage, View, contiguous_strides
from fastnn.capture.lowering.products import ACTIVATIONS, Product
from fastnn.capture.lowering.softmax import LOG_SOFTMAX, classes_last

_GRADIENTS = {
    f"{activation}_{suffix}": activation
    for activation in ACTIVATIONS
    if activation != "none"
    for suffix in ("gradient", "backward")
}


def fuse_epilogues(nodes: Sequence[Node], kept: Collection[Storage] = ()) -> list[Node]:
    """The same computation with fewer nodes; the final content of the storages in `kept` is unchanged."""
    program = Accesses(nodes, kept)
    for place in range(len(nodes)):
        while _join_to_product(program, place):
            pass
        _join_loss_gradients(program, place)
    return program.remaining()


def _reshaped(view: View, shape: tuple[int, ...]) -> View | None:
    """The same elements in the same order, if a view can have that shape."""
    if view.shape == shape:
        return view
    numel = 1
    for n in shape:
        numel *= n
    if view.numel != numel or not view.is_contiguous:
        return None
    return view.with_shape(shape, contiguous_strides(shape))


def _is_row(view: View, shape: tuple[int, ...]) -> bool:
    """Whether it is a single row, broadcast to all rows of that shape."""
    return bool(view.shape) and view.shape[-1] == shape[-1] and all(n == 1 for n in view.shape[:-1])


def _joined(product: Product, expr: Expr) -> Product | None:
    """The product that also computes an expression of its result, still written to the old memory."""

    def is_result(part: Expr) -> bool:
        return isinstance(part, View) and _reshaped(part, product.c.shape) == product.c

    if not isinstance(expr, tuple) or product.activation != "none" or product.saved is not None:
        return None
    name, *args = expr
    if name in ACTIVATIONS and len(args) == 1 and is_result(args[0]):
        return replace(product, activation=name)
    if name == "gate" and len(args) == 3 and args[2] == 0:  # torch's threshold_backward
        name, args = "relu_gradient", args[:2]
    if name in _GRADIENTS and len(args) == 2 and is_result(args[0]) and isinstance(args[1], View):
        saved = _reshaped(args[1], product.c.shape)
        if saved is not None and saved.dtype is product.c.dtype and saved.storage is not product.c.storage:
            return replace(product, activation=_GRADIENTS[name], saved=saved)
    if name == "add" and len(args) == 2 and product.addend is None:
        for result, row in (args, args[::-1]):
            if is_result(result) and isinstance(row, View) and _is_row(row, product.c.shape):
                if row.dtype is not product.c.dtype or row.storage is product.c.storage:
                    return None
                row = row.with_shape(row.shape[-1:], row.strides[-1:])
                return replace(product, addend=row.expand(product.c.shape), beta=1.0)
    return None


def _join_to_product(program: Accesses, place: int) -> bool:
    """Fuse the next node that accesses the product's result into the product at `place`, if possible."""
    product = Product.read(program.nodes[place])
    if product is None or product.z is not None:
        return False
    c = product.c
    at = program.next_access(c.storage, place)
    if at is None:
        return False
    node = program.nodes[at]
    if not isinstance(node, Elementwise) or not (node.dtype is node.out.dtype is c.dtype):
        return False
    joined = _joined(product, node.expr)
    out = _reshaped(node.out, c.shape)
    if joined is None or out is None:
        return False
    also_read = [v for v in (joined.addend, joined.saved) if v is not None and v != product.addend]
    if program.written_between(also_read, place, at):
        return False
    if out != c:
        # The result is written earlier than before: nothing may use its memory until then.
        read = [v for v in (joined.addend, joined.saved) if v is not None and v != out]
        if any(out.storage is view.storage for view in (c, product.a, product.b, *read)):
            return False
        if program.touched_between(out, place, at):
            return False
        joined.c = out
        if not program.is_dropped(c.storage, {at}):
            if joined.saved is not None or joined.activation == "none":
                return False
            joined.z = c
    program.replace(place, joined.instruction())
    program.replace(at, None)
    return True


def _join_loss_gradients(program: Accesses, place: int) -> None:
    """Fuse the gradient of a negative log-likelihood into that of log_softmax: mostly zeros, it need not be
    written out."""
    loss = program.nodes[place]
    if not isinstance(loss, Instruction) or loss.name != "nll_gradient":
        return
    g = loss.outs[0]
    at = program.next_access(g.storage, place)
    node = None if at is None else program.nodes[at]
    if at is None or not isinstance(node, Instruction) or node.name != "softmax_gradient":
        return
    (dx,), (given, y) = node.outs, node.ins
    dim = min(1, len(y.shape) - 1)
    if node.code != [dim, LOG_SOFTMAX] or classes_last(given) != g:
        return
    if not program.is_dropped(g.storage, {at}) or program.written_between(loss.ins, place, at):
        return
    if any(dx.storage is view.storage for view in (*loss.ins, y)):
        return
    joined = Instruction(
        "cross_entropy_gradient", [classes_last(dx)], [classes_last(y), *loss.ins], [], loss.code
    )
    program.replace(place, None)
    program.replace(at, joined)
