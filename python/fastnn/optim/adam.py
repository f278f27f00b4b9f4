"""Adam and AdamW that update all parameters of a group in one native call."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.adam import adam as torch_adam

from fastnn.optim.native import NativeOptimizer


class Adam(NativeOptimizer, torch.optim.Adam):
    r"""Adam: drop-in for :class:`torch.optim.Adam`, whose arguments, defaults, groups and state it has.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p &\leftarrow p - \frac{\text{lr}}{1 - \beta_1^t} \cdot
            \frac{m}{\sqrt{v} / \sqrt{1 - \beta_2^t} + \epsilon}

    with :math:`g` the gradient plus ``weight_decay`` times the parameter (AdamW: :math:`p \leftarrow
    (1 - \text{lr} \cdot \text{weight\_decay})\, p` instead), and under ``amsgrad`` the largest :math:`v` so
    far instead of :math:`v`.

    Parameters of any shape in float32, float64, bfloat16 or float16 are updated natively, all of a group in
    one call; :mod:`fastnn.optim` says what is left to torch. State: ``step``, ``exp_avg``, ``exp_avg_sq``,
    ``max_exp_avg_sq``.

    Args:
        params, lr: as in torch.
        betas: decay of the moments, in [0, 1).
        eps: added to the denominator.
        weight_decay: L2 penalty.
        amsgrad: divide by the largest second moment so far.
        foreach, maximize, capturable, differentiable, fused, decoupled_weight_decay: as in torch.
        state_dtype, master_weights: for parameters of 16 bits; see :mod:`fastnn.optim`.

    Raises:
        ValueError: an option out of its range.
        TypeError: ``state_dtype`` is not a dtype.
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
