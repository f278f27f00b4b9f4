"""Adagrad that updates all parameters of a group in one native call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad as torch_adagrad

from fastnn.optim.native import NativeOptimizer


class Adagrad(NativeOptimizer, torch.optim.Adagrad):
    r"""Adagrad: drop-in for :class:`torch.optim.Adagrad`, whose arguments, defaults, groups and state it has.

    .. math::
        s &\leftarrow s + g^2 \\
        p &\leftarrow p - \frac{\text{lr}}{1 + (t - 1) \cdot \text{lr\_decay}} \cdot
            \frac{g}{\sqrt{s} + \epsilon}

    with :math:`g` the gradient plus ``weight_decay`` times the parameter and :math:`t` the number of the
    step.

    Parameters of any shape in float32, float64, bfloat16 or float16 are updated natively, all of a group in
    one call; :mod:`fastnn.optim` says what is left to torch. Sparse gradients are too. State: ``step``,
    ``sum``.

    Args:
        params, lr: as in torch.
        lr_decay: how fast the learning rate falls with the number of steps. The rate that it leaves is a
            float64 here; torch rounds it to the dtype of an ``lr`` that is a tensor.
        weight_decay: L2 penalty.
        initial_accumulator_value: what the sum of squares begins with.
        eps: added to the denominator.
        foreach, maximize, differentiable, fused: as in torch.
        state_dtype, master_weights: for parameters of 16 bits; see :mod:`fastnn.optim`.

    Raises:
        ValueError: an option out of its range.
        TypeError: ``state_dtype`` is not a dtype.
        RuntimeError: a sparse gradient together with ``weight_decay`` or ``fused``.

    Source: Duchi, Hazan and Singer, `Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization <https://jmlr.org/papers/v12/duchi11a.html>`_.
    """

    _op = "adagrad"
    _lists = 4

    def _widen(self, param: Tensor, new: bool) -> None:
        super()._widen(param, new)
        if new and self._is_wide(param):  # torch has rounded its initial value
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
