"""Main program of a peer's process; the first request names the peer and the threads.

It imports neither torch nor fastnn. A peer is a file next to this one, with ``setup(threads)``, which
describes the library in words, and ``OPERATIONS``: functions that take a workload's arguments, numpy arrays
among them, and return a callable that does the work once and returns arrays.

Requests and replies are pickles on stdin and stdout, one reply for each request: ``(True, value)`` or
``(False, text of the error)``.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


class Host:
    """Holds one workload, calls it and times it."""

    def __init__(self, module: str, threads: int) -> None:
        peer = importlib.import_module(module)
        self._operations = peer.OPERATIONS
        self._run: Callable[[], Any] = lambda: ()
        self.greeting: tuple[str, list[str]] = (peer.setup(threads), sorted(self._operations))

    def build(self, op: str, arguments: dict[str, Any]) -> None:
        """Replace the workload."""
        self._run = lambda: ()
        gc.collect()
        self._run = self._operations[op](**arguments)
        gc.disable()

    def call(self) -> list[np.ndarray[Any, Any]]:
        """The answer of one call."""
        return [np.asarray(part) for part in self._run()]

    def sample(self, repeats: int, settle: float) -> tuple[float, float]:
        """Wall and CPU seconds of one call, means of `repeats`."""
        run, steps = self._run, range(repeats)
        settled = time.perf_counter() + settle
        run()  # not timed, as in runner.py
        while time.perf_counter() < settled:
            run()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in steps:
            run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return wall / repeats, cpu / repeats


def main() -> None:
    """Serve until stdin ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's output must not end up among the replies
    requests = sys.stdin.buffer
    host: Host | None = None
    reply: tuple[bool, Any]
    while True:
        try:
            name, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            if host is None:
                host = Host(*arguments)
                reply = (True, host.greeting)
            else:
                reply = (True, getattr(host, name)(*arguments))
        except Exception as error:
            reply = (False, f"{type(error).__name__}: {error}")
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    main()
