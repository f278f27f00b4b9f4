"""Adam and AdamW that update all parameters of a group in one native call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.adam import adam as torch_adam

from fastnn import _backend
from fastnn.optim._hooks import hooked_when_needed

# torch's check that a step which is captured into a CUDA graph may be; its name changed after torch 2.10. A
# torch that has neither goes without.
_check_capture: Callable[[torch.optim.Optimizer], None] | None = getattr(
    torch.optim.Optimizer,
    "_accelerator_graph_capture_health_check",
    getattr(torch.optim.Optimizer, "_cuda_graph_capture_health_check", None),
)

# Parameters, gradients and the four tensors of state, as torch's functions take them.
_SixLists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def _match_layout(param: Tensor, grad: Tensor) -> Tensor:
    """A copy of `grad` in the memory order of `param`."""
    with torch.no_grad():
        return torch.empty_like(param).copy_(grad)


class Adam(torch.optim.Adam):
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
    float16 tensors on the CPU, each with gradient and state of its own dtype, and share no memory. 16-bit
    parameters are computed in float32. ``foreach`` and ``fused`` are kept for checkpoints and make no
    difference then. Other groups, and ``capturable``, ``differentiable`` and the scale of a fused
    ``GradScaler``, are left to torch.

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

    Raises:
        ValueError: an option out of its range.
        RuntimeError: a sparse gradient.

    Source: Kingma and Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_;
    Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond <https://openreview.net/forum?id=ryQu7f-RZ>`_.
    """

    @hooked_when_needed
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters once.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The loss that ``closure`` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        reason = self._torch_reason()
        for group in self.param_groups:
            why = self._step_group(group) if reason is None else reason
            if not _backend.decide("adam", why):
                self._step_group_with_torch(group)
        return loss

    def _torch_reason(self) -> str | None:
        """Why torch must update every group, or None."""
        attributes = self.__dict__
        if attributes.get("grad_scale") is not None or attributes.get("found_inf") is not None:
            return "a GradScaler left the scaling to the optimizer"
        return _backend.torch_reason()

    def _step_group(self, group: dict[str, Any]) -> str | None:
        """Update one group natively; if that cannot be, leave it as it is and say why."""
        written = _backend.cpu.adam_step(group, self.state, _match_layout)
        if written is None:
            self._init_group(group, [], [], [], [], [], [])
            written = _backend.cpu.adam_step(group, self.state, _match_layout)
        if type(written) is list:
            increment_version(written)
            return None
        return "a parameter has no state" if written is None else str(written)

    def _step_group_with_torch(self, group: dict[str, Any]) -> None:
        if _check_capture is not None:
            _check_capture(self)
        tensors: _SixLists = ([], [], [], [], [], [])
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            has_complex = self._init_group(group, *tensors)
            beta1, beta2 = group["betas"]
            torch_adam(
                *tensors,
                amsgrad=group["amsgrad"],
                has_complex=has_complex,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
                foreach=group["foreach"],
                capturable=group["capturable"],
                differentiable=group["differentiable"],
                fused=group["fused"],
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=getattr(self, "found_inf", None),
                decoupled_weight_decay=group["decoupled_weight_decay"],
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
