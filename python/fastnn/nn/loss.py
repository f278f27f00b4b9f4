"""Losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _replaced
from fastnn.ops.cross_entropy import cross_entropy

_torch_forward = _replaced.original(torch.nn.CrossEntropyLoss, "forward")


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """:class:`torch.nn.CrossEntropyLoss` through :func:`fastnn.functional.cross_entropy`.

    Args:
        weight: class weights (C), kept as a buffer.
        size_average: deprecated, see ``reduction``.
        ignore_index: index of rows to ignore.
        reduce: deprecated, see ``reduction``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: in [0, 1].
        z_loss: weight of the mean squared log-sum-exp of the rows.
    """

    __constants__ = ["ignore_index", "reduction", "label_smoothing", "z_loss"]  # noqa: RUF012
    # On the class, so that a module whose class fastnn.convert changes has it too.
    z_loss: float = 0.0

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``input`` against ``target``."""
        # TorchScript compiles the first branch only.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            if self.z_loss != 0.0:
                raise RuntimeError("CrossEntropyLoss: z_loss is not available in TorchScript")
            return F.cross_entropy(
                input,
                target,
                weight=self.weight,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
                label_smoothing=self.label_smoothing,
            )
        else:
            theirs = torch.nn.CrossEntropyLoss.forward
            if theirs is not _torch_forward and theirs is not CrossEntropyLoss.forward and self.z_loss == 0.0:
                return theirs(self, input, target)
            return cross_entropy(
                input,
                target,
                weight=self.weight,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
                label_smoothing=self.label_smoothing,
                z_loss=self.z_loss,
            )

    def extra_repr(self) -> str:
        """Show what torch's loss shows, and the z-loss if there is one."""
        return f"z_loss={self.z_loss}" if self.z_loss else super().extra_repr()


_replaced.add_calls(CrossEntropyLoss)
