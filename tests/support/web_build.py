"""The kernels compiled for WebAssembly (web/), built once, and Node to run them."""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from building import CannotBuildError, one_at_a_time, run, tool

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "web"
SITE = BUILD / "site"
RUNNER = ROOT / "tests" / "web" / "kernels.mjs"


@functools.cache
def site() -> Path:
    """Build what `make web` does; raises CannotBuildError if the machine lacks the tools."""
    cmake, ninja = tool("cmake"), tool("ninja")
    if importlib.util.find_spec("ziglang") is None:
        raise CannotBuildError("the kernels in a browser need the package ziglang")
    with one_at_a_time(BUILD):
        run(
            *(
                cmake,
                "-S",
                str(ROOT / "web"),
                "-B",
                str(BUILD),
                "-G",
                "Ninja",
                f"-DCMAKE_MAKE_PROGRAM={ninja}",
            ),
            *(f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'web' / 'zig.cmake'}", f"-DFASTNN_PYTHON={sys.executable}"),
        )
        run(cmake, "--build", str(BUILD))
        run(cmake, "--install", str(BUILD), "--prefix", str(SITE))
    return SITE


class WebError(Exception):
    """An error thrown by JavaScript; `name` is that of its class."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


_TYPES = {"f32": np.float32, "i32": np.int32, "u8": np.uint8}


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"u8": base64.b64encode(value).decode()}
    if isinstance(value, Tensor):
        array = value.detach().contiguous().numpy()
        kind = next(name for name, dtype in _TYPES.items() if array.dtype == dtype)
        return {kind: base64.b64encode(array.tobytes()).decode()}
    if isinstance(value, dict):
        return {name: _encode(item) for name, item in value.items()}
    return [_encode(item) for item in value] if isinstance(value, (list, tuple)) else value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"number"}:
        return float(value["number"].replace("Infinity", "inf"))
    for kind, dtype in _TYPES.items():
        if value.keys() == {kind}:
            return torch.from_numpy(np.frombuffer(base64.b64decode(value[kind]), dtype).copy())
    return {name: _decode(item) for name, item in value.items()}


class Node:
    """A process that runs the kernels: see kernels.mjs for its requests."""

    def __init__(self) -> None:
        node = tool("node")
        self._process = subprocess.Popen(
            [node, str(RUNNER), str(site())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, op: str, *args: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(_encode([op, *args])) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if isinstance(answer, dict) and "error" in answer:
            raise WebError(answer["error"], answer["message"])
        return _decode(answer)

    def close(self) -> None:
        self._process.communicate()
