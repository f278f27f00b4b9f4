"""Properties tested in a process of their own: a crash is a failed test, which names the call."""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# How many calls, and their seed: few, or in four files 100,000, in parts distributed over several processes.
PARTS = [(300, 0), *(pytest.param(2_500, seed, marks=pytest.mark.long) for seed in range(1, 11))]
_SECONDS = 1800  # more than any part takes on a busy machine

_last_call: Any = None


def about_to_call(what: object) -> None:
    """Record what a property does next, in case it crashes."""
    if _last_call is not None:
        text = repr(what).encode()
        _last_call.seek(0)
        _last_call.write(len(text).to_bytes(8, "little") + text)


def _try(module: str, name: str, calls: int, seed: int, folder: Path) -> None:
    global _last_call
    said = open(folder / "said", "w")  # noqa: SIM115  # until the process ends
    faulthandler.enable(said)
    _last_call = open(folder / "call", "wb", buffering=0)  # noqa: SIM115
    prop = getattr(importlib.import_module(module), name)
    settings = hypothesis.settings(
        max_examples=calls, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    try:
        hypothesis.seed(seed)(settings(prop))()
    except BaseException:
        said.write(traceback.format_exc())
        said.close()
        sys.exit(1)


def holds(prop: Callable[[], None], calls: int, seed: int, folder: Path) -> None:
    """Run a function of a module, made by ``hypothesis.given``, that often."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastnn", "fastnn.capture", "hypothesis"])
    process = context.Process(target=_try, args=(prop.__module__, prop.__name__, calls, seed, folder))
    process.start()
    process.join(_SECONDS)
    ended = process.exitcode
    process.kill()
    process.join()
    if ended == 0:
        return
    said = (folder / "said").read_text()
    how = {1: "failed", None: "did not end"}.get(ended, f"ended the process with {ended}")
    call = (folder / "call").read_bytes()
    text = call[8 : 8 + int.from_bytes(call[:8], "little")].decode()
    raise AssertionError(f"seed {seed} {how}; the last call was\n{text}\n{said}")
