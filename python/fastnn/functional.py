"""The ops, with the names, defaults and semantics of :mod:`torch.nn.functional`."""

from fastnn.ops.cross_entropy import cross_entropy
from fastnn.ops.gram import gram_matrix
from fastnn.ops.linear import linear
from fastnn.ops.linear_cross_entropy import linear_cross_entropy
from fastnn.ops.relu import relu

__all__ = ["cross_entropy", "gram_matrix", "linear", "linear_cross_entropy", "relu"]
