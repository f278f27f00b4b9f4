"""Cross-entropy on CUDA: what its kernels cannot tell at once, streams and capture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captured import assert_capturable
from fastnn import _dispatch, functional

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


def test_a_target_out_of_range_is_told_at_the_next_call(cuda_device: torch.device) -> None:
    x = torch.randn(4, 10, device=cuda_device)
    bad, good = (torch.tensor([0, 1, k, 2], device=cuda_device) for k in (10, 9))
    loss = functional.cross_entropy(x, bad)
    if cuda_device.type == "cuda":
        torch.cuda.synchronize()
    assert loss.isnan()
    with pytest.raises(IndexError, match=r"Target 10 is out of bounds\."):
        functional.cross_entropy(x, good)
    assert functional.cross_entropy(x, good).isfinite()


@pytest.mark.cuda
def test_capture_and_streams() -> None:
    x = torch.randn(64, 1000, device="cuda", requires_grad=True)
    target = torch.randint(1000, (64,), device="cuda")

    def run() -> list[Tensor]:
        loss = functional.cross_entropy(functional.relu(x), target)
        return [loss.detach(), *torch.autograd.grad(loss, x)]

    assert_capturable(run)
