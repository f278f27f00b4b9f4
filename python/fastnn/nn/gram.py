"""The Gram matrix as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnn import functional


class GramMatrix(torch.nn.Module):
    r"""Inner products :math:`G = F F^T` of feature maps; see :func:`fastnn.functional.gram_matrix`.

    Args:
        normalize: divide by the number of elements of one :math:`F`.

    Shape:
        input ``(C, L)``, ``(B, C, L)`` or ``(B, C, H, W)``; output ``(C, C)`` or ``(B, C, C)``.
    """

    def __init__(self, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, input: Tensor) -> Tensor:
        """Return the Gram matrix of each sample of `input`."""
        # TorchScript compiles the first branch only.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            features = input.flatten(2) if input.dim() == 4 else input
            scale = 1.0 / (features.size(-2) * features.size(-1)) if self.normalize else 1.0
            return torch.matmul(features * scale, features.mT)
        else:
            return functional.gram_matrix(input, normalize=self.normalize)

    def extra_repr(self) -> str:
        """The options, as the constructor takes them."""
        return f"normalize={self.normalize}"
