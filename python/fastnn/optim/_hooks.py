"""Step hooks and profiler labels at no cost while they are not used."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.optim.optimizer as torch_optimizer

from fastnn import _dispatch, _replaced
from fastnn._torch_internals import (
    STEP_POST_HOOKS,
    STEP_PRE_HOOKS,
    all_step_post_hooks,
    all_step_pre_hooks,
    is_profiling,
    step_names_known,
)

Step = Callable[..., Any]
_is_compiling = torch.compiler.is_compiling
# By class of torch, its step and whether that and what it runs are unchanged, once all of it was torch's own.
_own: dict[type, tuple[Step, Callable[[], bool]]] = {}


def replaced_step(kind: Any) -> Step | None:
    """The step of torch's class `kind`, if it or something that it runs was replaced; None if all is torch's.

    torch itself wraps its own when the first optimizer of the class is made. torch.compile traces this, and
    cannot look into a Watch.
    """
    own = _own.get(kind)
    if own is not None and own[0] is kind.step and (_is_compiling() or own[1]()):
        return None
    names = _replaced.Names(_replaced.parts_of_step(kind))
    if names.first_replaced() is not None:
        return kind.step  # type: ignore[no-any-return]
    if _is_compiling():
        return None
    if _dispatch.cpu is not None:
        names.watch(_dispatch.cpu.Watch())
    _own[kind] = kind.step, names.unchanged
    return None


def wrap_replaced_step(kind: Any) -> None:
    """If the step of torch's class `kind` was replaced, wrap it as torch does when an optimizer is made."""
    theirs = replaced_step(kind)
    if theirs is not None and not hasattr(theirs, "hooked"):
        kind.step = torch_optimizer.Optimizer.profile_hook_step(theirs)
        kind.step.hooked = True


def hooked_when_needed(step: Step) -> Step:
    """Wrap an optimizer's ``step`` as torch does, but skip the wrapper while it would have no effect.

    torch opens a profiler range and looks for hooks around every step, which takes as long as the update of
    a small network. Here that happens only while a profiler runs or a step hook is registered. If the
    step of torch's class was replaced, the replacement runs.
    """
    with_hooks = torch_optimizer.Optimizer.profile_hook_step(step)
    if not step_names_known:
        return with_hooks

    @functools.wraps(step)
    def wrapper(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        theirs = replaced_step(self._torchs)
        if theirs is not None:
            return theirs(self) if closure is None else theirs(self, closure)
        attributes = self.__dict__
        if (
            is_profiling()
            or attributes[STEP_PRE_HOOKS]
            or attributes[STEP_POST_HOOKS]
            or all_step_pre_hooks
            or all_step_post_hooks
        ) and type(self).step is wrapper:  # torch wraps the step of a subclass itself
            return with_hooks(self) if closure is None else with_hooks(self, closure)
        return step(self, closure)

    wrapper.hooked = True  # type: ignore[attr-defined]  # torch then does not wrap it
    return wrapper
