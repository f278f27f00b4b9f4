"""Activations as modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import functional


class ReLU(torch.nn.ReLU):
    """Rectified linear unit, a drop-in for :class:`torch.nn.ReLU`; see :func:`fastnn.functional.relu`.

    Args:
        inplace: write the result over the input.

    Shape:
        input ``(*)``, output ``(*)``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the unit to each element of `input`."""
        # TorchScript compiles the first branch only.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.relu(input, inplace=self.inplace)
        else:
            return functional.relu(input, inplace=self.inplace)
