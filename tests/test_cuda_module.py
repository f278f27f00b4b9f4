"""The CUDA module on any machine: it imports without a driver, refuses what is not its own, and says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fastnn
from fastnn import _dispatch, _torch_internals

built, why_not_built = _dispatch.load_cuda() if _dispatch.cpu is not None else (None, "")
needs_module = pytest.mark.skipif(built is None, reason="needs the compiled CUDA module")


@needs_module
def test_import_makes_no_context_and_needs_no_driver() -> None:
    code = (
        "import torch, fastnn._cuda as cuda\n"
        "print(cuda.architectures, cuda.driver_version() >= 0, torch.cuda.is_initialized())\n"
        "assert not any('libcuda.so' in line for line in open('/proc/self/maps')) or cuda.driver_version()\n"
    )
    paths = {"PYTHONPATH": str(Path(fastnn.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=paths)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["True", "False"]


def test_import_of_fastnn_does_not_load_the_module() -> None:
    code = "import sys, fastnn; print('fastnn._cuda' in sys.modules)"
    paths = {"PYTHONPATH": str(Path(fastnn.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=paths)
    assert done.stdout.strip() == "False", done.stderr


def test_info_says_what_there_is() -> None:
    text = fastnn.info().cuda
    if built is None:
        assert str(why_not_built) in text
    else:
        assert built.architectures in text
        assert ("no driver" in text) == (built.driver_version() == 0)
        assert ("this torch has no CUDA" in text) == (torch.version.cuda is None)


@needs_module
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_why() -> None:
    assert "CUDA error" in built.why_unusable(0)


@needs_module
def test_cpu_tensors_are_refused() -> None:
    x = torch.randn(4)
    y = torch.full_like(x, 7.0)
    with pytest.raises(RuntimeError, match="relu: a CUDA kernel was given a tensor on the CPU"):
        built.relu_forward(x, y)
    assert torch.equal(y, torch.full_like(x, 7.0))


@needs_module
def test_arguments_are_checked_as_on_the_cpu() -> None:
    for module in (_dispatch.cpu, built):
        with pytest.raises(RuntimeError, match=r"relu: output has shape \(5,\), expected \(4,\)"):
            module.relu_forward(torch.randn(4), torch.randn(5))


class OnCuda:
    """Looks like a CUDA tensor; used only for the decision."""

    is_cuda, is_cpu, is_nested, dtype, layout = True, False, False, torch.float32, torch.strided

    def __init__(self, index: int = 0) -> None:
        self.device = torch.device("cuda", index)

    def is_neg(self) -> bool:
        return False


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "PLAIN_TYPES", _dispatch.PLAIN_TYPES | {OnCuda})
    monkeypatch.setattr(_torch_internals, "has_storage", lambda t: True)
    reasons = {(0, "relu"): None, (0, "linear"): "linear has failed", (1, "relu"): "no such device"}
    monkeypatch.setattr(_dispatch, "_kernels_reason", lambda index, op: reasons[index, op])


def reason(*tensors: Any, cuda: str | None = "relu") -> str | None:
    return _dispatch.torch_reason(*tensors, cuda=cuda)


@pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")
@pytest.mark.usefixtures("stand_ins")
def test_cuda_tensors_are_decided_by_their_device() -> None:
    assert reason(OnCuda()) is None
    assert reason(OnCuda(), None, OnCuda()) is None
    assert reason(OnCuda(1)) == "no such device"
    assert reason(OnCuda(), cuda="linear") == "linear has failed"
    assert reason(OnCuda(), cuda=None) == "no kernels for device cuda"
    for mixed in ((OnCuda(), OnCuda(1)), (OnCuda(), torch.randn(1))):
        assert reason(*mixed) == "devices are mixed"
    assert reason(torch.randn(1), OnCuda()) == "no kernels for device cuda"
    assert reason(torch.randn(1)) is None
    double = OnCuda()
    double.dtype = torch.float64  # type: ignore[misc]
    assert "mixed" in str(reason(OnCuda(), double))
    with fastnn.disabled():
        assert reason(OnCuda()) == "fastnn is disabled"


def test_native_is_the_module_of_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "cuda", "the CUDA module")
    assert _dispatch.native(OnCuda()) == "the CUDA module"  # type: ignore[arg-type]
    assert _dispatch.native(torch.randn(1)) is _dispatch.cpu


def _cross_entropy(module: Any, x: torch.Tensor, target: torch.Tensor, *more: Any) -> None:
    module.cross_entropy_forward(x, target, None, torch.empty(()), None, -100, 1, 0.0, 0.0, *more)


@needs_module
def test_cross_entropy_refuses_cpu_tensors_and_wrong_scratch() -> None:
    x, target = torch.randn(2, 3), torch.tensor([0, 1])
    scratch = torch.empty(built.cross_entropy_scratch, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="cross_entropy: a CUDA kernel was given a tensor on the CPU"):
        _cross_entropy(built, x, target, scratch, False)
    with pytest.raises(RuntimeError, match="cross_entropy: scratch has shape"):
        _cross_entropy(built, x, target, scratch[1:], False)
    with pytest.raises(RuntimeError, match="cross_entropy: scratch has dtype float32"):
        _cross_entropy(built, x, target, scratch.float(), False)
    for module, more in ((_dispatch.cpu, ()), (built, (scratch, False))):
        with pytest.raises(ValueError, match="batch size 3"):
            _cross_entropy(module, x, torch.tensor([0, 1, 1]), *more)


@needs_module
def test_optimizers_leave_parameters_of_the_cpu_alone() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = torch.optim.SGD([p], lr=0.1)
    answer = built.sgd_step(optimizer.param_groups[0], optimizer.state, lambda param, grad: grad)
    assert answer == "devices are mixed"
    assert torch.equal(p, torch.ones(3))
