"""fastnn: fused neural-network training for PyTorch.

Environment variables; the first five are read when fastnn is imported. For switches ``0``, ``false``,
``no``, ``off`` and an empty value mean no, anything else means yes.

- ``FASTNN_DISABLE``: run torch's ops in the whole process, as `disabled` does in a block.
- ``FASTNN_LOG``: log where each op ran, and why not natively, to the logger ``fastnn``.
- ``FASTNN_ALWAYS_NATIVE``: run native kernels for everything that they cover, however small.
- ``FASTNN_CHECK``: on CUDA, raise an error for a class index out of range at once.
- ``FASTNN_CPU_ISA``: the instruction set, one of ``sse2`` (``neon`` on Arm), ``avx2``, ``avx512`` and
  ``avx512_bf16``; by default the best one available.
- ``FASTNN_DATA_DIR``, ``FASTNN_CACHE_DIR``, ``FASTNN_MIRRORS``: where ``fastnn.data`` looks for MNIST, where
  it keeps what it downloads, and the addresses that it downloads from, separated by spaces (empty: none).
"""

from fastnn import functional, nn, optim
from fastnn._diagnostics import EagerStepWarning, Explanation, explain
from fastnn._dispatch import disabled
from fastnn._info import Info, info
from fastnn._version import __version__
from fastnn.capture import capture
from fastnn.convert import convert, revert
from fastnn.step.train_step import TrainStep

__all__ = [
    "EagerStepWarning",
    "Explanation",
    "Info",
    "TrainStep",
    "__version__",
    "capture",
    "convert",
    "disabled",
    "explain",
    "functional",
    "info",
    "nn",
    "optim",
    "revert",
]
