"""The ops, with the names, defaults and semantics of :mod:`torch.nn.functional`."""

from fastnn.ops.relu import relu

__all__ = ["relu"]
