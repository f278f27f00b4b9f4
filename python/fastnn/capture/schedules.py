"""A hook for all learning rate schedulers, which torch lacks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

_lock = threading.Lock()
_hooks: dict[int, Callable[[LRScheduler], None]] = {}


class SchedulerHook:
    """Until it is removed, `hook` is given each scheduler that is stepped, in any thread.

    Subclasses have steps of their own, but each sets attributes, so that is what is seen: a search for
    schedulers and a look at their counters would find neither those that are made later nor, without tens of
    milliseconds for each recording, those whose optimizer is not known.
    """

    def __init__(self, hook: Callable[[LRScheduler], None]) -> None:
        """Begin."""
        with _lock:
            _hooks[id(self)] = hook
            LRScheduler.__setattr__ = _set  # type: ignore[method-assign,assignment]

    def remove(self) -> None:
        """End; with the last one torch's class is as it was."""
        with _lock:
            del _hooks[id(self)]
            if not _hooks:
                del LRScheduler.__setattr__


def _set(scheduler: LRScheduler, name: str, value: Any) -> None:
    super(LRScheduler, scheduler).__setattr__(name, value)
    for hook in list(_hooks.values()):
        hook(scheduler)
