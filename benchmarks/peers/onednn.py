"""oneDNN's float32 products, through the operator that torch's inductor uses for them.

``ONEDNN_VERBOSE=1`` shows one inner_product primitive for each call (brg_matmul:avx512_core on AVX-512), the
weight read with its own strides, bias and ReLU in the same primitive. Only a transposed left operand, like dY
for dW, is copied first.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

NAME = "oneDNN"


def reason_absent() -> str | None:
    """Why it cannot be measured, or None."""
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without it"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this torch has no torch.ops.mkldnn._linear_pointwise"
    return None


def describe() -> str:
    """In words, for the report."""
    version = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    return f"{version[1] if version else 'version unknown'}, through torch.ops.mkldnn._linear_pointwise"


def linear(x: Tensor, w: Tensor, b: Tensor | None = None, post: str = "none") -> Tensor:
    """``post(x w^T + b)``; post is ``none`` or ``relu``."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, w, b, post, [], "")
    return product
