"""fastnn: fused neural-network training for PyTorch."""

from fastnn import functional, nn, optim
from fastnn._backend import disabled
from fastnn._convert import convert, revert
from fastnn._explain import explain
from fastnn._info import info
from fastnn._train_step import EagerStepWarning, TrainStep
from fastnn._version import __version__

__all__ = [
    "EagerStepWarning",
    "TrainStep",
    "__version__",
    "convert",
    "disabled",
    "explain",
    "functional",
    "info",
    "nn",
    "optim",
    "revert",
]
