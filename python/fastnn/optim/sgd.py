"""SGD that updates all parameters of a group in one native call."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.sgd import sgd as torch_sgd

from fastnn.optim._native import NativeOptimizer


class SGD(NativeOptimizer, torch.optim.SGD):
    r"""SGD: drop-in for :class:`torch.optim.SGD`, whose arguments, defaults, groups and state it has.

    .. math::
        b &\leftarrow \mu b + (1 - \tau) g \\
        p &\leftarrow p - \text{lr} \cdot b

    with :math:`g` the gradient plus ``weight_decay`` times the parameter, :math:`\mu` the momentum and
    :math:`\tau` the dampening. At the first step :math:`b = g`. Under ``nesterov`` :math:`g + \mu b` takes
    the place of :math:`b` in the second line, without momentum :math:`g` does.

    All parameters of a group are updated in one native call when they are float32, float64, bfloat16 or
    float16 tensors on the CPU or all on one CUDA device, each with gradient and state of its own dtype (a
    16-bit one's state may be float32), and share no memory. 16-bit parameters are computed in float32.
    ``foreach`` and ``fused`` are kept for checkpoints and make no difference on the CPU. On CUDA a learning
    rate that is a tensor there and what a ``GradScaler`` leaves to a fused optimizer are read by the kernel:
    nothing waits for the device. Other groups, sparse gradients, ``differentiable``, and on the CPU the scale
    of a fused ``GradScaler``, are left to torch.

    State (``momentum_buffer``, with momentum only) and state_dict are torch's and load both ways.

    Args:
        params: parameters, named parameters, or dicts that define groups.
        lr: learning rate, a float or a tensor of one element.
        momentum: what is kept of the buffer from step to step.
        dampening: what is held back of the gradient.
        weight_decay: L2 penalty.
        nesterov: look ahead by one step of momentum.
        maximize, foreach, differentiable, fused: as in torch.
        state_dtype: of the state of bfloat16 and float16 parameters: None, theirs, or ``torch.float32``.
        master_weights: keep a float32 copy of bfloat16 and float16 parameters and update that, so that small
            updates are not lost; the state is float32 then. See :mod:`fastnn.optim`.

    Raises:
        ValueError: an option out of its range.
        TypeError: ``state_dtype`` is no dtype.

    Source: Sutskever et al., `On the Importance of Initialization and Momentum in Deep Learning
    <https://proceedings.mlr.press/v28/sutskever13.html>`_.
    """

    _op = "sgd"
    _lists = 3

    def _fit_for_fused(self, group: dict[str, Any], lists: list[list[Any]]) -> bool:
        # Of new buffers torch's fused function makes all or none, and keeps them where a GradScaler has it
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
