"""Adam and AdamW that update all parameters of a group in one native call."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.adam import adam as torch_adam

from fastnn.optim._native import NativeOptimizer


class Adam(NativeOptimizer, torch.optim.Adam):
    r"""Adam: drop-in for :class:`torch.optim.Adam`, whose arguments, defaults, groups and state it has.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p &\leftarrow p - \frac{\text{lr}}{1 - \beta_1^t} \cdot
            \frac{m}{\sqrt{v} / \sqrt{1 - \beta_2^t} + \epsilon}

    with :math:`g` the gradient plus ``weight_decay`` times the parameter (AdamW: :math:`p \leftarrow
    (1 - \text{lr} \cdot \text{weight\_decay})\, p` instead), and under ``amsgrad`` the largest :math:`v` so
    far in the place of :math:`v`.

    All parameters of a group are updated in one native call when they are float32, float64, bfloat16 or
    float16 tensors on the CPU or all on one CUDA device, each with gradient and state of its own dtype (a
    16-bit one's state may be float32), and share no memory. 16-bit parameters are computed in float32.
    ``foreach`` and ``fused`` are kept for checkpoints and make no difference on the CPU. On CUDA
    ``capturable`` and ``fused`` count the steps on the device, where a learning rate that is a tensor and
    what a ``GradScaler`` leaves to a fused optimizer are read too: nothing waits for the device. Other
    groups, ``differentiable``, and on the CPU ``capturable`` and the scale of a fused ``GradScaler``, are
    left to torch.

    State (``step``, ``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq``) and state_dict are torch's and load both
    ways.

    Args:
        params: parameters, named parameters, or dicts that define groups.
        lr: learning rate, a float or a tensor of one element.
        betas: decay of the moments, in [0, 1).
        eps: added to the denominator.
        weight_decay: L2 penalty.
        amsgrad: divide by the largest second moment so far.
        foreach, maximize, capturable, differentiable, fused, decoupled_weight_decay: as in torch.
        state_dtype: of the state of bfloat16 and float16 parameters: None, theirs, or ``torch.float32``.
        master_weights: keep a float32 copy of bfloat16 and float16 parameters and update that, so that small
            updates are not lost; the state is float32 then. See :mod:`fastnn.optim`.

    Raises:
        ValueError: an option out of its range.
        TypeError: ``state_dtype`` is no dtype.
        RuntimeError: a sparse gradient.

    Source: Kingma and Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_;
    Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond <https://openreview.net/forum?id=ryQu7f-RZ>`_.
    """

    _op = "adam"
    _lists = 6

    def _torch_update(
        self, group: dict[str, Any], lists: list[list[Any]], found: Any, fused: dict[str, Any]
    ) -> None:
        beta1, beta2 = group["betas"]
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = lists
        torch_adam(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            max_exp_avg_sqs,
            steps,
            amsgrad=group["amsgrad"],
            has_complex=found,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            **fused,
        )


class AdamW(Adam, torch.optim.AdamW):
    r"""AdamW: drop-in for :class:`torch.optim.AdamW`; weight decay shrinks the parameter directly.

    .. math::
        p \leftarrow (1 - \text{lr} \cdot \text{weight\_decay})\, p - \frac{\text{lr}}{1 - \beta_1^t} \cdot
            \frac{m}{\sqrt{v} / \sqrt{1 - \beta_2^t} + \epsilon}

    Arguments, state, what runs natively and errors are those of :class:`Adam`, but ``weight_decay`` is 0.01
    by default.

    Source: Loshchilov and Hutter, `Decoupled Weight Decay Regularization <https://arxiv.org/abs/1711.05101>`_.
    """
