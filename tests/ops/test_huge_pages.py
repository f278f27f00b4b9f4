"""Large results are in huge pages if the system supports them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastnn.functional as F

MIB = 1 << 20


def advised(t: Tensor) -> bool:
    """Whether the mapping around the middle of a tensor carries the flag of MADV_HUGEPAGE."""
    middle = t.data_ptr() + t.numel() * t.element_size() // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(bound, 16) for bound in first.split("-"))
            inside = begin <= middle < end
        elif inside and first == "VmFlags:":
            return "hg" in rest
    raise AssertionError("the tensor is in no mapping")


def logits_gradient() -> Tensor:
    x = torch.zeros(64, 64 * 1024 * 4, requires_grad=True)
    F.cross_entropy(x, torch.zeros(64, dtype=torch.int64)).backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists() or not Path("/proc/self/smaps").exists(),
    reason="this system has no transparent huge pages",
)
@pytest.mark.parametrize(
    "result",
    [
        lambda: F.relu(torch.zeros(16 * MIB)),
        lambda: F.linear(torch.zeros(4096, 1), torch.zeros(4096, 1)),
        lambda: F.gram_matrix(torch.zeros(1, 4096, 1)),
        logits_gradient,
    ],
    ids=["relu", "linear", "gram", "cross_entropy"],
)
def test_large_results_ask_for_huge_pages(result: Callable[[], Tensor]) -> None:
    assert advised(result())
