"""Starts the process that runs the tests, and survives whatever happens to it.

After a test in which the process died, hung, or lost the device, another process continues with the
next test.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from fastnn._proof import FAILED, Row, Subject

_COMMAND = (sys.executable, "-m", "fastnn.selftest.child")
# Seconds without output. A start imports torch and loads its libraries and the kernels, which takes some ten
# seconds from a slow disk. On a device newer than the kernels, a test may be the first to launch those of a
# source file, which the driver then compiles: minutes on a slow processor.
_STARTS_WITHIN, _ANSWERS_WITHIN, _COMPILES_WITHIN = 180.0, 60.0, 600.0


class Found(NamedTuple):
    """The tests of a device; `subject` is None for the CPU, and until the device has been identified."""

    subject: Subject | None
    rows: tuple[Row, ...]


class Unusable(Exception):
    """Why nothing, or nothing more, can be tested on a device; `found` is what was found before."""

    def __init__(self, why: str, found: Found) -> None:
        super().__init__(why)
        self.found = found


class Interrupted(KeyboardInterrupt):
    """By the user; `found` is what was found before."""

    def __init__(self, found: Found) -> None:
        super().__init__()
        self.found = found


def run(
    device: str,
    notify: Callable[[Row], None] = lambda row: None,
    command: Sequence[str] = _COMMAND,
    answers_within: float = _ANSWERS_WITHIN,
) -> Found:
    """Test a device.

    Args:
        device: "cpu", "cuda" or "cuda:<index>".
        notify: called with each test that has ended.
        command: starts the process; the device and the number of its first test are added.
        answers_within: how many seconds a test may take, unless the driver compiles its kernels.

    Raises:
        Unusable: the device cannot be used, from the start or any longer.
        Interrupted: by Ctrl-C.
    """
    run = _Run(notify)
    try:
        while not run.is_done:
            with _process([*command, device, str(run.next)]) as process:
                run.read(process, answers_within)
    except KeyboardInterrupt:
        raise Interrupted(run.found) from None
    return run.found


class _Run:
    """What the processes have reported so far."""

    def __init__(self, notify: Callable[[Row], None]) -> None:
        self._notify = notify
        self._subject: Subject | None = None
        self._rows: list[Row] = []
        self.next = 0  # number of a test
        self.is_done = False

    @property
    def found(self) -> Found:
        return Found(self._subject, tuple(self._rows))

    def read(self, process: _Process, answers_within: float) -> None:
        """Read what a process reports, until it ends, possibly during a test."""
        running: tuple[int, str, str] | None = None
        process.limit = _STARTS_WITHIN
        for line in process.lines():
            if "slow" in line:
                answers_within = _COMPILES_WITHIN
            process.limit = answers_within
            if line.get("subject"):
                self._subject = Subject(**line["subject"])
            elif "unusable" in line:
                raise Unusable(line["unusable"], self.found)
            elif "begin" in line:
                running = line["begin"], line["op"], line["what"]
            elif "outcome" in line and running is not None:
                self._end(*running, line["outcome"], line["why"])
                running = None
            elif "lost" in line:
                return
            elif "done" in line:
                self.is_done = True
                return
        why = process.why_ended()
        if running is None:
            raise Unusable(f"the process of the tests ended between two tests: {why}", self.found)
        self._end(*running, FAILED, why)

    def _end(self, number: int, op: str, what: str, outcome: str, why: str) -> None:
        self.next = number + 1
        self._rows.append(Row(op, what, outcome, why))
        self._notify(self._rows[-1])


class _Process:
    def __init__(self, process: subprocess.Popen[str], errors: IO[bytes]) -> None:
        self._process, self._errors = process, errors
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.limit = 0.0  # seconds without output
        self._is_late = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Its reports, until it ends or is silent for too long."""
        while True:
            try:
                line = self._lines.get(timeout=self.limit)
            except queue.Empty:
                self._is_late = True
                return
            if line is None:
                return
            with contextlib.suppress(ValueError):  # a library may write something there too
                said = json.loads(line)
                if isinstance(said, dict):
                    yield said

    def why_ended(self) -> str:
        """The reason, once `lines` has ended."""
        if self._is_late:
            return f"it has not ended within {self.limit:g} seconds"
        code = self._process.wait()
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip().splitlines()
        word = f"the process ended with exit code {code}"
        if code < 0:
            word = f"the process was ended by {signal.Signals(-code).name}"
        return f"{word}: {text[-1]}" if text else word

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def _process(command: Sequence[str]) -> Iterator[_Process]:
    environment = dict(os.environ)
    # Kernels run for tensors of any size, and before they have passed the self-test.
    environment.update(FASTNN_CUDA_UNPROVEN="1", FASTNN_ALWAYS_NATIVE="1", FASTNN_DISABLE="", FASTNN_CHECK="")
    environment.update(FASTNN_LOG="", PYTHONFAULTHANDLER="")
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    with tempfile.TemporaryFile() as errors:
        started = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        process = _Process(started, errors)
        try:
            yield process
        finally:
            process.stop()
