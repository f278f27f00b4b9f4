"""`benchmarks/gpu_check.sh` names tests that exist: only a machine with a GPU would notice otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastnn import _dispatch

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")


def test_each_of_the_selected_tests_is_there_and_needs_a_gpu() -> None:
    names = (ROOT / "benchmarks" / "gpu_sanitize.txt").read_text().splitlines()
    command = [sys.executable, "-m", "pytest", "--all", "--collect-only", "-q", "-m", "cuda", *names]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert [line for line in found.stdout.splitlines() if "::" in line] == names
