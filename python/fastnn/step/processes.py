"""Steps in one of several processes that train together."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist

from fastnn._diagnostics import levels_out

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def warn_where_local(model: torch.nn.Module) -> None:
    """Warn if gradients of `model` stay in this process, which is one of several."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    processes = dist.get_world_size()
    if processes > 1 and not _reaches_others(model):
        warnings.warn(
            f"TrainStep does not average gradients over the {processes} processes: each trains its own "
            "model. If they are to train one, give it the model wrapped in DistributedDataParallel (its "
            "steps run eagerly). To silence this: "
            'warnings.filterwarnings("ignore", message="TrainStep does not average gradients")',
            stacklevel=levels_out(),
        )


def _reaches_others(model: torch.nn.Module) -> bool:
    """Whether it contains a wrapper, or its parameters are shared by several processes (DTensors)."""
    wrappers: tuple[Any, ...] = (torch.nn.parallel.DistributedDataParallel,)
    sharded = sys.modules.get("torch.distributed.fsdp")  # slow to import
    if sharded is not None:
        wrappers += (sharded.FullyShardedDataParallel,)
    return any(isinstance(module, wrappers) for module in model.modules()) or any(
        type(p) not in _PLAIN for p in model.parameters()
    )
