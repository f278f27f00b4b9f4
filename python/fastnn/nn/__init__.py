"""Drop-in modules and utilities, with the names, parameters and state_dict keys of :mod:`torch.nn`."""

from fastnn.nn import utils
from fastnn.nn.activation import ReLU
from fastnn.nn.gram import GramMatrix
from fastnn.nn.linear import Linear
from fastnn.nn.loss import CrossEntropyLoss
from fastnn.nn.mlp import MLP, Sequential

__all__ = ["MLP", "CrossEntropyLoss", "GramMatrix", "Linear", "ReLU", "Sequential", "utils"]
