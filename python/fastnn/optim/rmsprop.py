"""RMSprop that updates all parameters of a group in one native call."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.rmsprop import rmsprop as torch_rmsprop

from fastnn.optim._native import NativeOptimizer


class RMSprop(NativeOptimizer, torch.optim.RMSprop):
    r"""RMSprop: drop-in for :class:`torch.optim.RMSprop`, whose arguments, defaults, groups and state it has.

    .. math::
        v &\leftarrow \alpha v + (1 - \alpha) g^2 \\
        p &\leftarrow p - \text{lr} \cdot \frac{g}{\sqrt{v} + \epsilon}

    with :math:`g` the gradient plus ``weight_decay`` times the parameter. ``centered`` puts :math:`v - a^2`
    in the place of :math:`v` in the second line, :math:`a \leftarrow \alpha a + (1 - \alpha) g`. With
    momentum :math:`b \leftarrow \text{momentum} \cdot b + g / (\sqrt{v} + \epsilon)` takes the place of the
    quotient.

    All parameters of a group are updated in one native call when they are float32, float64, bfloat16 or
    float16 tensors on the CPU or all on one CUDA device, each with gradient and state of its own dtype (a
    16-bit one's state may be float32), and share no memory. 16-bit parameters are computed in float32.
    ``foreach`` is kept for checkpoints and makes no difference then. On CUDA ``capturable`` counts the steps
    on the device. Other groups, ``differentiable``, and on the CPU ``capturable``, are left to torch.

    State (``step``, ``square_avg``, ``momentum_buffer``, ``grad_avg``) and state_dict are torch's and load
    both ways.

    Args:
        params: parameters, named parameters, or dicts that define groups.
        lr: learning rate, a float or a tensor of one element.
        alpha: what is kept of the moments from step to step.
        eps: added to the denominator.
        weight_decay: L2 penalty.
        momentum: what is kept of the buffer from step to step.
        centered: divide by the root of the variance in the place of the second moment.
        capturable, foreach, maximize, differentiable: as in torch.
        state_dtype: of the state of bfloat16 and float16 parameters: None, theirs, or ``torch.float32``.
        master_weights: keep a float32 copy of bfloat16 and float16 parameters and update that, so that small
            updates are not lost; the state is float32 then. See :mod:`fastnn.optim`.

    Raises:
        ValueError: an option out of its range.
        TypeError: ``state_dtype`` is no dtype.
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
