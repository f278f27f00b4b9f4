"""Optimizers: drop-in for those of :mod:`torch.optim`."""

from fastnn.optim.adam import Adam, AdamW
from fastnn.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW"]
