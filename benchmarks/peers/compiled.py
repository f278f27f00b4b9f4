"""A training step under ``torch.compile``, in the form that suits it best: one graph for the whole of it.

As usually written, with ``loss.backward()`` and ``optimizer.step()``, a step breaks into three graphs and is
hardly faster than eager mode. So gradients come from ``torch.autograd.grad``, which dynamo follows when its
``trace_autograd_ops`` is on, and Adam's update is written out: ``fullgraph=True`` proves that nothing is left
outside.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

NAME = "torch.compile"
_CONFIG = "trace_autograd_ops"


def reason_absent() -> str | None:
    """Why it cannot be measured, or None."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return "no C++ compiler for its kernels"
    import torch._dynamo.config as config

    return None if hasattr(config, _CONFIG) else f"this torch's dynamo has no {_CONFIG}"


def describe() -> str:
    """In words, for the report."""
    return (
        f"torch {torch.__version__}, inductor, forward, loss, backward and Adam in one graph (fullgraph=True)"
    )


def training_step(
    model: nn.Module, loss_of: nn.Module, *, eps: float, max_norm: float | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """A step with Adam (Kingma and Ba; torch's defaults); returns the loss, detached.

    With `max_norm` the norm of all gradients is clipped, by the formula of torch's `clip_grad_norm_`.
    """
    import torch._dynamo.config as config

    setattr(config, _CONFIG, True)
    torch._dynamo.reset()  # the steps measured before have shapes of their own
    parameters = list(model.parameters())
    ms, vs = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    count = torch.tensor(0.0)
    lr, beta1, beta2 = 1e-3, 0.9, 0.999

    def step(x: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = loss_of(model(x), target)
        grads = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            if max_norm is not None:
                norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
                scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
                grads = tuple(grad * scale for grad in grads)
            count.add_(1)
            correction1, correction2 = 1 - beta1**count, (1 - beta2**count).sqrt()
            for parameter, grad, m, v in zip(parameters, grads, ms, vs, strict=True):
                m.lerp_(grad, 1 - beta1)
                v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                parameter.sub_(lr / correction1 * (m / (v.sqrt() / correction2 + eps)))
        return loss.detach()

    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(step, fullgraph=True)
    return compiled
