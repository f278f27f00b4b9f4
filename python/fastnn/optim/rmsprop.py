"""RMSprop that updates all parameters of a group in one native call."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.rmsprop import rmsprop as torch_rmsprop

from fastnn.optim.native import NativeOptimizer


class RMSprop(NativeOptimizer, torch.optim.RMSprop):
    r"""RMSprop: drop-in for :class:`torch.optim.RMSprop`, whose arguments, defaults, groups and state it has.

    .. math::
        v &\leftarrow \alpha v + (1 - \alpha) g^2 \\
        p &\leftarrow p - \text{lr} \cdot \frac{g}{\sqrt{v} + \epsilon}

    with :math:`g` the gradient plus ``weight_decay`` times the parameter. Under ``centered`` the second line
    has :math:`v - a^2` instead of :math:`v`, :math:`a \leftarrow \alpha a + (1 - \alpha) g`; with momentum
    :math:`b \leftarrow \text{momentum} \cdot b + g / (\sqrt{v} + \epsilon)` instead of the quotient.

    Parameters of any shape in float32, float64, bfloat16 or float16 are updated natively, all of a group in
    one call; :mod:`fastnn.optim` says what is left to torch. State: ``step``, ``square_avg``,
    ``momentum_buffer``, ``grad_avg``.

    Args:
        params, lr: as in torch.
        alpha: what is kept of the moments from step to step.
        eps: added to the denominator.
        weight_decay: L2 penalty.
        momentum: what is kept of the buffer from step to step.
        centered: divide by the root of the variance instead of the second moment.
        capturable, foreach, maximize, differentiable: as in torch.
        state_dtype, master_weights: for parameters of 16 bits; see :mod:`fastnn.optim`.

    Raises:
        ValueError: an option out of its range.
        TypeError: ``state_dtype`` is not a dtype.
        RuntimeError: a sparse gradient.

    Source: Hinton, `Neural Networks for Machine Learning, lecture 6
    <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_; centered: Graves,
    `Generating Sequences With Recurrent Neural Networks <https://arxiv.org/abs/1308.0850>`_.
    """

    _op = "rmsprop"
    _lists = 6

    def _torch_update(
        self, group: dict[str, Any], lists: list[list[Any]], found: Any, fused: dict[str, Any]
    ) -> None:
        params, grads, square_avgs, buffers, grad_avgs, steps = lists  # torch's function has another order
        torch_rmsprop(
            params,
            grads,
            square_avgs,
            grad_avgs,
            buffers,
            steps,
            lr=group["lr"],
            alpha=group["alpha"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            centered=group["centered"],
            foreach=group["foreach"],
            maximize=group["maximize"],
            differentiable=group["differentiable"],
            capturable=group["capturable"],
            has_complex=found,
        )
