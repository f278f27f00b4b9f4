"""Warnings that torch gives on GPUs only, and which are no fault of what is tested."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

# Shown, where any other warning fails a test. torch's C++ code ends all of its warnings so: that streams of
# gradients do not match, that a graph is empty, that a thread had no context, that the debugging of
# synchronization is a prototype. The same tests run on the CPU, where such a warning does fail them. What
# Python code of torch's says has no such mark.
_FILTERS = (
    r"default:(?s).*\(Triggered internally at:UserWarning",
    r"default:Found GPU\d:UserWarning",  # that torch is compiled for others
    r"default:\s*.* is not compatible with the current PyTorch installation:UserWarning",
    r"default:PyTorch was compiled with an unknown compute capability:UserWarning",
    r"default:Can't (initialize NVML|get nvml device count):UserWarning",
    r"default:TensorFloat32 tensor cores:UserWarning",  # that they could be used, of torch.compile
)


def allow(items: Sequence[pytest.Item]) -> None:
    """Have these warnings fail none of the tests that need a GPU."""
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.filterwarnings(*_FILTERS))
