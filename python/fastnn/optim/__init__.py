"""Optimizers: drop-in for those of :mod:`torch.optim`."""

from fastnn.optim.adam import Adam, AdamW

__all__ = ["Adam", "AdamW"]
