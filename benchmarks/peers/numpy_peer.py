"""OpenBLAS, the matrix product inside numpy's wheels. Imported in a peer's process only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import threadpoolctl

Array = np.ndarray[Any, Any]
Run = Callable[[], list[Array]]


def setup(threads: int) -> str:
    """Check that the library is OpenBLAS and is limited to `threads`; name version and kernels."""
    libraries = [each for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"]
    if [each["internal_api"] for each in libraries] != ["openblas"]:
        raise RuntimeError(f"this numpy multiplies with {[each['internal_api'] for each in libraries]}")
    (library,) = libraries
    if library["num_threads"] != threads:
        raise RuntimeError(f"OpenBLAS has {library['num_threads']} threads instead of {threads}")
    return f"OpenBLAS {library['version']}, {library['architecture']} kernels, numpy {np.__version__}"


def _linear(x: Array, w: Array) -> Run:
    return lambda: [x @ w.T]


def _linear_dx(dy: Array, w: Array) -> Run:
    return lambda: [dy @ w]


def _linear_dw(dy: Array, x: Array) -> Run:
    return lambda: [dy.T @ x]


def _gram(features: Array) -> Run:
    """numpy recognises a product with its own transpose and calls syrk, which computes one triangle."""
    return lambda: [features @ features.T]


OPERATIONS: dict[str, Callable[..., Run]] = {
    "linear": _linear,
    "linear_dx": _linear_dx,
    "linear_dw": _linear_dw,
    "gram": _gram,
}
