"""fastnn: fused neural-network training for PyTorch."""

from fastnn._version import __version__

__all__ = ["__version__"]
