"""Starts the process that tests, and outlives whatever becomes of it.

After a test in which the process died, hung, or lost the device, another process goes on with the next test.
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
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, NamedTuple

from fastnn._proof import FAILED, Result, Row, Subject, path_of
from fastnn.data.atomic import atomic_file

_COMMAND = (sys.executable, "-m", "fastnn.selftest.child")
# Seconds without a word. A start imports torch and loads its libraries and the kernels, which takes some ten
# seconds from a slow disk.
_STARTS_WITHIN, _ANSWERS_WITHIN = 180.0, 60.0


class Unusable(Exception):
    """Why nothing can be tested on a device."""


class Found(NamedTuple):
    """The tests of one device; `subject` is None for the CPU."""

    subject: Subject | None
    rows: tuple[Row, ...]


def run(
    device: str,
    notify: Callable[[Row], None] = lambda row: None,
    command: Sequence[str] = _COMMAND,
    answers_within: float = _ANSWERS_WITHIN,
) -> Found:
    """Test a device.

    Args:
        device: "cpu", "cuda" or "cuda:<index>".
        notify: told of each test that has ended.
        command: starts the process; the device and the number of its first test are added.
        answers_within: how many seconds a test may take.

    Raises:
        Unusable: nothing could be tested.
    """
    rows: list[Row] = []
    found: list[Subject | None] = []
    first = 0
    while True:
        running: tuple[int, str, str] | None = None
        with _process([*command, device, str(first)]) as process:
            why = ""
            for line in process.lines(_STARTS_WITHIN, answers_within):
                if "unusable" in line:
                    raise Unusable(line["unusable"])
                if "subject" in line:
                    found.append(line["subject"] and Subject(**line["subject"]))
                elif "begin" in line:
                    running = line["begin"], line["op"], line["what"]
                elif "outcome" in line and running is not None:
                    first = running[0] + 1
                    rows.append(Row(*running[1:], line["outcome"], line["why"]))
                    notify(rows[-1])
                    running = None
                elif "lost" in line:
                    break
                elif "done" in line:
                    return Found(found[0], tuple(rows))
            else:
                why = process.why_ended()
        if running is not None:
            first = running[0] + 1
            rows.append(Row(*running[1:], FAILED, why))
            notify(rows[-1])
        elif why:
            raise Unusable(f"the process that tests ended between tests: {why}")


class _Process:
    def __init__(self, process: subprocess.Popen[str], errors: IO[bytes]) -> None:
        self._process, self._errors = process, errors
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._limit: float | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def lines(self, starts_within: float, answers_within: float) -> Iterator[dict[str, Any]]:
        """What it says, until it ends or says nothing for too long."""
        limit = starts_within
        while True:
            try:
                line = self._lines.get(timeout=limit)
            except queue.Empty:
                self._limit = limit
                return
            if line is None:
                return
            with contextlib.suppress(ValueError):  # a library may write something there too
                said = json.loads(line)
                if isinstance(said, dict):
                    yield said
            limit = answers_within

    def why_ended(self) -> str:
        """After `lines` has come to an end."""
        if self._limit is not None:
            return f"it has not ended within {self._limit:g} seconds"
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
    # The kernels run, however small the tensors are, and before they have proven themselves.
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


def keep(subject: Subject, rows: Sequence[Row]) -> Path:
    """Write the result where `_dispatch` looks for it.

    Raises:
        OSError: it cannot be written.
        RuntimeError: there is no cache directory.
    """
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    path = path_of(subject)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(Result(subject, when, tuple(rows)).as_json().encode())
    return path
