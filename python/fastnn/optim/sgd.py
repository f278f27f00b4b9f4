"""SGD that updates all parameters of a group in one native call."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.sgd import sgd as torch_sgd

from fastnn.optim.native import NativeOptimizer


class SGD(NativeOptimizer, torch.optim.SGD):
    r"""SGD: drop-in for :class:`torch.optim.SGD`, whose arguments, defaults, groups and state it has.

    .. math::
        b &\leftarrow \mu b + (1 - \tau) g \\
        p &\leftarrow p - \text{lr} \cdot b

    with :math:`g` the gradient plus ``weight_decay`` times the parameter, :math:`\mu` the momentum and
    :math:`\tau` the dampening. At the first step :math:`b = g`. The second line has :math:`g + \mu b`
    instead of :math:`b` under ``nesterov``, and :math:`g` without momentum.

    Parameters of any shape in float32, float64, bfloat16 or float16 are updated natively, all of a group in
    one call; :mod:`fastnn.optim` says what is left to torch. Sparse gradients are too, and on CUDA a first
    step with dampening that a ``GradScaler`` may skip. State: ``momentum_buffer``, with momentum only.

    Args:
        params, lr: as in torch.
        momentum: what is kept of the buffer from step to step.
        dampening: what is held back of the gradient.
        weight_decay: L2 penalty.
        nesterov: look ahead by one step of momentum.
        maximize, foreach, differentiable, fused: as in torch.
        state_dtype, master_weights: for parameters of 16 bits; see :mod:`fastnn.optim`.

    Raises:
        ValueError: an option out of its range.
        TypeError: ``state_dtype`` is not a dtype.

    Source: Sutskever et al., `On the Importance of Initialization and Momentum in Deep Learning
    <https://proceedings.mlr.press/v28/sutskever13.html>`_.
    """

    _op = "sgd"
    _lists = 3

    def _fit_for_fused(self, group: dict[str, Any], lists: list[list[Any]]) -> bool:
        # Torch's fused function creates all new buffers or none, and keeps them even if a GradScaler makes it
        # skip the step that would fill them.
        _, grads, buffers = lists
        begins = group["momentum"] != 0 and any(buffer is None for buffer in buffers)
        if begins and not any(grad.is_sparse for grad in grads):  # which it refuses
            return False
        return super()._fit_for_fused(group, lists)

    def _torch_update(
        self, group: dict[str, Any], lists: list[list[Any]], found: Any, fused: dict[str, Any]
    ) -> None:
        params, grads, buffers = lists
        torch_sgd(
            params,
            grads,
            buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            has_sparse_grad=found,
            foreach=group["foreach"],
            **fused,
        )
        if group["momentum"] != 0:
            updated = (param for param in group["params"] if param.grad is not None)
            for param, buffer in zip(updated, buffers, strict=True):
                self.state[param]["momentum_buffer"] = buffer
