"""fastnn: fused neural-network training for PyTorch."""

from fastnn import functional
from fastnn._backend import disabled
from fastnn._version import __version__

__all__ = ["__version__", "disabled", "functional"]
