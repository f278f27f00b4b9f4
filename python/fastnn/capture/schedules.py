"""A hook for all learning rate schedulers, which torch lacks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

_lock = threading.Lock()
_hooks: dict[int, Callable[[LRScheduler], None]] = {}


class SchedulerHook:
    """Until it is removed, `hook` is called with each scheduler that is stepped, in any thread.

    Subclasses override the step, but each sets attributes, so that is what is watched: a search for
    schedulers and their counters would miss those that are made later and, short of tens of milliseconds per
    recording, those whose optimizer is not known.
    """

    def __init__(self, hook: Callable[[LRScheduler], None]) -> None:
        """Begin."""
        with _lock:
            _hooks[id(self)] = hook
            LRScheduler.__setattr__ = _set  # type: ignore[method-assign,assignment]

    def remove(self) -> None:
        """End; the last one restores torch's class."""
        with _lock:
            del _hooks[id(self)]
            if not _hooks:
                del LRScheduler.__setattr__


def _set(scheduler: LRScheduler, name: str, value: Any) -> None:
    super(LRScheduler, scheduler).__setattr__(name, value)
    for hook in list(_hooks.values()):
        hook(scheduler)
