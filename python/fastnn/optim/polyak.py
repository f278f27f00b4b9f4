"""The soft update of target networks."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastnn import _dispatch
from fastnn._labels import labelled
from fastnn._torch_internals import lerp_each

Pairs = list[tuple[Tensor, Tensor]]


def polyak_(targets: Tensor | Iterable[Tensor], sources: Tensor | Iterable[Tensor], tau: float) -> None:
    r"""Move target tensors, in place, part of the way to their sources: the soft update of DDPG, TD3, SAC.

    .. math:: t \leftarrow t + \tau \, (s - t)

    computed as :func:`torch.lerp` does: from :math:`\tau = 1/2` on as :math:`s + (\tau - 1)(s - t)`. A target
    that equals its source stays as it is. The two forms in common use, ``tau * s + (1 - tau) * t`` (CleanRL)
    and ``t.mul_(1 - tau)`` before ``t.add_(s, alpha=tau)`` (Stable-Baselines3), also round the kept part of
    the target, and differ from this one by an eps or two. :math:`\tau = 1` copies the source and
    :math:`\tau = 0` changes nothing, whatever the values; between them NaN and infinity pass as in
    :func:`torch.lerp`.

    All tensors are updated in one native call if they are on the CPU, in any mixture of float32, float64,
    bfloat16 and float16, fill one block of memory each, have the strides of their sources, and share no
    memory with others (the same tensor as target and source is fine). 16-bit tensors are computed in float32
    and rounded once. Anything else is left to torch; on CUDA to torch's lerp of many tensors, which takes few
    launches.

    Integer and boolean tensors, which have no average (``num_batches_tracked`` of batch norm), are copied
    unless :math:`\tau = 0`. Buffers are updated if you pass them; ``parameters()`` does not contain them.

    Args:
        targets: a tensor, or tensors, to be written, of any shapes: most often ``target.parameters()``. No
            gradient is recorded, even if they require one.
        sources: as many, in the same order, each with the shape, dtype and device of its target.
        tau: how far to go, from 0 to 1.

    Raises:
        ValueError: the numbers of targets and sources differ, or ``tau`` is not in [0, 1].
        TypeError: an argument is not a tensor or tensors, or ``tau`` is not a number.
        RuntimeError: a source has another shape, dtype or device than its target. With any of these errors
            nothing has been written.

    Source: Lillicrap et al., `Continuous Control with Deep Reinforcement Learning
    <https://arxiv.org/abs/1509.02971>`_.
    """
    target_list, source_list = _listed("targets", targets), _listed("sources", sources)
    if len(target_list) != len(source_list):
        raise ValueError(
            f"polyak_: as many sources as targets are expected, but there are {len(target_list)} targets and "
            f"{len(source_list)} sources"
        )
    given: Any = tau  # of any type
    if not isinstance(given, (numbers.Real, Tensor)):
        raise TypeError(f"polyak_: tau must be a number, got {type(given).__name__}")
    if not 0 <= tau <= 1:
        raise ValueError(f"polyak_: tau must be in [0, 1], but is {tau}")
    if not target_list:
        return
    if not _dispatch.decide("polyak", _update_natively(target_list, source_list, float(tau))):
        pairs = list(zip(target_list, source_list, strict=True))
        _check(pairs)
        if tau > 0:
            _update_with_torch(pairs, float(tau))


def _listed(name: str, tensors: Tensor | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        return [tensors]
    if not isinstance(tensors, Iterable):
        raise TypeError(f"polyak_: {name} must be a tensor or tensors, got {type(tensors).__name__}")
    return list(tensors)


def _update_natively(targets: list[Tensor], sources: list[Tensor], tau: float) -> str | None:
    """None; or, with nothing changed, why torch must update."""
    # The native call itself checks the tensors, all of them.
    reason = _dispatch.torch_reason(targets[0])
    if reason is None:
        reason = labelled(_dispatch.cpu.polyak, "polyak")(targets, sources, tau)
    if reason is None and tau > 0:
        increment_version(targets)
    return reason


def _check(pairs: Pairs) -> None:
    for i, (target, source) in enumerate(pairs):
        for name, tensor in (("targets", target), ("sources", source)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"polyak_: {name}[{i}] must be a tensor, but is a {type(tensor).__name__}")
        for what in ("shape", "dtype", "device"):
            wanted, found = getattr(target, what), getattr(source, what)
            if wanted != found:
                raise RuntimeError(
                    f"polyak_: sources[{i}] has {what} {_text(found)}, expected that of targets[{i}], "
                    f"{_text(wanted)}"
                )


def _text(value: object) -> str:
    return str(tuple(value)) if isinstance(value, torch.Size) else str(value)


@torch.no_grad()
def _update_with_torch(pairs: Pairs, tau: float) -> None:
    averaged: Pairs = []
    for target, source in pairs:
        if tau == 1 or not (target.is_floating_point() or target.is_complex()):
            target.copy_(source)
        elif target.layout is not torch.strided:  # lerp has no kernels for sparse tensors
            target.mul_(1 - tau).add_(source, alpha=tau)
        else:
            averaged.append((target, source))
    if lerp_each is not None and _in_few_launches(averaged):
        lerp_each([target for target, _ in averaged], [source for _, source in averaged], tau)
        return
    for target, source in averaged:
        target.lerp_(source, tau)


def _in_few_launches(pairs: Pairs) -> bool:
    """Whether torch has one kernel for many such tensors, and their order does not matter."""
    plain = all(
        type(each) in (Tensor, torch.nn.Parameter) and each.is_cuda for pair in pairs for each in pair
    )
    return plain and len({target.data_ptr() for target, _ in pairs}) == len(pairs) > 0
