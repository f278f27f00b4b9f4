"""Adagrad that updates all parameters of a group in one native call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad as torch_adagrad

from fastnn.optim._native import NativeOptimizer


class Adagrad(NativeOptimizer, torch.optim.Adagrad):
    r"""Adagrad: drop-in for :class:`torch.optim.Adagrad`, whose arguments, defaults, groups and state it has.

    .. math::
        s &\leftarrow s + g^2 \\
        p &\leftarrow p - \frac{\text{lr}}{1 + (t - 1) \cdot \text{lr\_decay}} \cdot
            \frac{g}{\sqrt{s} + \epsilon}

    with :math:`g` the gradient plus ``weight_decay`` times the parameter and :math:`t` the number of the
    step.

    All parameters of a group are updated in one native call when they are float32, float64, bfloat16 or
    float16 tensors on the CPU or all on one CUDA device, each with gradient and state of its own dtype (a
    16-bit one's state may be float32), and share no memory. 16-bit parameters are computed in float32.
    ``foreach`` and ``fused`` are kept for checkpoints and make no difference on the CPU. On CUDA ``fused``
    counts the steps on the device, where a learning rate that is a tensor and what a ``GradScaler`` leaves to
    a fused optimizer are read too: nothing waits for the device. Other groups, sparse gradients,
    ``differentiable``, and on the CPU the scale of a fused ``GradScaler``, are left to torch.

    State (``step``, ``sum``) and state_dict are torch's and load both ways.

    Args:
        params: parameters, named parameters, or dicts that define groups.
        lr: learning rate, a float or a tensor of one element.
        lr_decay: how fast the learning rate falls with the number of steps. The rate that it leaves is a
            float64 here; torch rounds it to the dtype of an ``lr`` that is a tensor.
        weight_decay: L2 penalty.
        initial_accumulator_value: what the sum of squares begins with.
        eps: added to the denominator.
        foreach, maximize, differentiable, fused: as in torch.
        state_dtype: of the state of bfloat16 and float16 parameters: None, theirs, or ``torch.float32``.
        master_weights: keep a float32 copy of bfloat16 and float16 parameters and update that, so that small
            updates are not lost; the state is float32 then. See :mod:`fastnn.optim`.

    Raises:
        ValueError: an option out of its range.
        TypeError: ``state_dtype`` is no dtype.
        RuntimeError: a sparse gradient together with ``weight_decay`` or ``fused``.

    Source: Duchi, Hazan and Singer, `Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization <https://jmlr.org/papers/v12/duchi11a.html>`_.
    """

    _op = "adagrad"
    _lists = 4

    def _widen(self, param: Tensor, new: bool) -> None:
        super()._widen(param, new)
        if new and self._is_wide(param):  # torch has rounded what it begins with
            start = self.defaults["initial_accumulator_value"]
            self.state[param]["sum"] = torch.full_like(param, start, dtype=torch.float32)

    def _torch_update(
        self, group: dict[str, Any], lists: list[list[Any]], found: Any, fused: dict[str, Any]
    ) -> None:
        has_sparse_grad, has_complex = found
        params, grads, sums, steps = lists
        torch_adagrad(
            params,
            grads,
            sums,
            steps,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            lr_decay=group["lr_decay"],
            eps=group["eps"],
            has_sparse_grad=has_sparse_grad,
            foreach=group["foreach"],
            maximize=group["maximize"],
            differentiable=group["differentiable"],
            has_complex=has_complex,
            **fused,
        )
