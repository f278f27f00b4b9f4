"""Warnings that torch issues only on GPUs fail no test, and all others do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastnn import _dispatch

ROOT = Path(__file__).parents[1]
TESTS = """
import warnings

import pytest
import torch

PYTHON = (
    "Found GPU0 NVIDIA X1 which is of compute capability (CC) 12.0.\\nThe following list",
    "\\nNVIDIA X1 with CUDA capability sm_120 is not compatible with the current PyTorch installation.\\nIf",
    "PyTorch was compiled with an unknown compute capability 13.0.",
    "Can't initialize NVML",
    "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled.",
)


def warn_in_cpp():
    (torch.ones(1, requires_grad=True) * 2).grad


@pytest.mark.cuda
def test_of_cpp():
    warn_in_cpp()


@pytest.mark.cuda
@pytest.mark.parametrize("said", PYTHON)
def test_of_python(said):
    warnings.warn(said)


@pytest.mark.cuda
def test_another():
    warnings.warn("of fastnn's own")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_of_both(device):
    warn_in_cpp()
"""


@pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")
def test_only_what_torch_says_of_a_gpu_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "test_warnings.py").write_text(TESTS)
    shared = (ROOT / "tests" / "conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(f"{shared}\nHAS_GPU = True\n")
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *options, str(tmp_path)]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    names = [line.split("::")[-1].split(" ")[0] for line in said]
    assert names == ["test_another", "test_of_both[cpu]"], done.stdout + done.stderr
    assert "7 passed" in done.stdout
