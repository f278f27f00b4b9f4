"""Native instructions for torch's ops: one file for each kind of op."""

from fastnn.capture.lowering import (
    activations,
    copies,
    elementwise,
    foreach,
    indexing,
    joining,
    losses,
    normalisation,
    products,
    random,
    reductions,
    softmax,
    statistics,
)
from fastnn.capture.lowering.table import Lowering, lower

__all__ = [
    "Lowering",
    "activations",
    "copies",
    "elementwise",
    "foreach",
    "indexing",
    "joining",
    "losses",
    "lower",
    "normalisation",
    "products",
    "random",
    "reductions",
    "softmax",
    "statistics",
]
