"""The CUDA module compiled for the CPU (tests/cuda_emulator), built once and imported by the tests."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from building import CannotBuildError, one_at_a_time, run, tool

SOURCE = Path(__file__).parents[1] / "cuda_emulator"
# One per Python version that uses the checkout: modules of one do not load in another.
BUILD = Path(__file__).parents[2] / "build" / f"emulator-{sys.implementation.cache_tag}"

# The order in which the threads of a kernel run: a kernel without a race gives the same bits in all of them.
ORDERS = [("forward", 0), ("reverse", 0), ("warps", 1), ("threads", 2)]
# Parameters of fixtures: the two orders that detected every barrier omitted from a kernel.
EMULATED = ("emulated-reverse", "emulated-threads")


class Emulation(NamedTuple):
    """The CUDA kernels as a module that takes tensors of the CPU, and the emulator's own functions."""

    cuda: Any
    checks: Any


def is_built() -> bool:
    """Whether it has been compiled before."""
    return any(BUILD.glob("_cuda.*.so"))


def _build() -> None:
    """Compile what has changed since the last time."""
    cmake, ninja = tool("cmake"), tool("ninja")
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise CannotBuildError("the CUDA emulator needs a C++ compiler")
    try:
        import pybind11
    except ModuleNotFoundError:
        raise CannotBuildError("the CUDA emulator needs pybind11") from None
    run(
        *(cmake, "-S", str(SOURCE), "-B", str(BUILD), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
    )
    run(cmake, "--build", str(BUILD), "--parallel", str(min(4, os.cpu_count() or 1)))


def _import(name: str) -> ModuleType:
    (path,) = BUILD.glob(f"{name}.*.so")
    spec = importlib.util.spec_from_file_location(f"cuda_emulator.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def emulation() -> Emulation:
    """Build and import it; raises CannotBuildError if the machine lacks the tools."""
    with one_at_a_time(BUILD):
        _build()
    return Emulation(_import("_cuda"), _import("emulator_checks"))
