"""Native instructions for torch's ops: one file for each kind of op."""

from fastnn.capture.lowering import indexing, joining, normalisation, products, softmax
from fastnn.capture.lowering.table import Lowering, lower

__all__ = ["Lowering", "indexing", "joining", "lower", "normalisation", "products", "softmax"]
