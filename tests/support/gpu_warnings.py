"""Warnings that torch issues on GPUs only, and that are not caused by the tested code."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

# Shown, whereas any other warning fails a test. All warnings of torch's C++ code end like this: mismatched
# streams of gradients, an empty graph, a thread without a context, the prototype of synchronization
# debugging. The same tests run on the CPU, where such a warning does fail them. Those of torch's Python code
# have no such mark.
_FILTERS = (
    r"default:(?s).*\(Triggered internally at:UserWarning",
    r"default:Found GPU\d:UserWarning",  # that torch was compiled for other GPUs
    r"default:\s*.* is not compatible with the current PyTorch installation:UserWarning",
    r"default:PyTorch was compiled with an unknown compute capability:UserWarning",
    r"default:Can't (initialize NVML|get nvml device count):UserWarning",
    r"default:TensorFloat32 tensor cores:UserWarning",  # by torch.compile: that they could be used
)


def allow(items: Sequence[pytest.Item]) -> None:
    """Keep these warnings from failing tests that need a GPU."""
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.filterwarnings(*_FILTERS))
