"""Whether the CUDA kernels have passed their self-test on a device, as stored by `fastnn selftest`.

A result is valid for one device, driver and build, until any of them changes. It is a file of the user's
cache directory; one that cannot be read proves nothing, and the reason says so.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from fastnn._cache import cache_dir
from fastnn._version import __version__

# Compute capabilities, such as "9.0", on which the kernels run without a self-test by the user: those for
# which docs/gpu-status.md reports a result with all tests passed. None yet.
VERIFIED_CAPABILITIES: frozenset[str] = frozenset()

_FORMAT = 1  # of the files
PASSED, FAILED, LEFT_OUT = "passed", "failed", "left out"


@dataclass(frozen=True)
class Subject:
    """What a result applies to."""

    name: str
    uuid: str
    capability: str
    driver: str
    build: str


@dataclass(frozen=True)
class Row:
    """One test.

    Attributes:
        op: whose kernels, as passed to `_dispatch.torch_reason`.
        what: the dtype, or what is special.
        outcome: PASSED, FAILED or LEFT_OUT.
        why: the reason if it was not passed.
    """

    op: str
    what: str
    outcome: str
    why: str


@dataclass(frozen=True)
class Result:
    """What a self-test has found, and when (UTC)."""

    subject: Subject
    when: str
    rows: tuple[Row, ...]

    def as_json(self) -> str:
        """The text of its file."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)

    def off(self) -> dict[str, str]:
        """The ops that are off, with the outcome of their tests: FAILED, or LEFT_OUT if none was passed."""
        outcomes: dict[str, set[str]] = {}
        for row in self.rows:
            outcomes.setdefault(row.op, set()).add(row.outcome)
        return {
            op: FAILED if FAILED in found else LEFT_OUT
            for op, found in outcomes.items()
            if FAILED in found or PASSED not in found
        }

    def why_off(self, op: str) -> str | None:
        """Why the kernels of an op must not run, or None."""
        rows = [row for row in self.rows if row.op == op]
        for row in rows:
            if row.outcome == FAILED:
                return f"the self-test of {op} ({row.what}) failed on {self.subject.name}: {row.why}"
        if any(row.outcome == PASSED for row in rows):
            return None
        why = f": {rows[0].why}" if rows else ""
        return f"the self-test on {self.subject.name} left out {op}{why}"


class Unreadable(Exception):
    """A stored result that cannot be read; its text says where and why."""


@functools.cache
def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def build_of(module: Any) -> str:
    """Which build of fastnn a compiled module belongs to: another file is another build."""
    return f"{__version__} {_digest(module.__file__)}"


def _driver(module: Any) -> str:
    """The driver's own version, if Linux reports it, and the CUDA version that it supports."""
    number = module.driver_version()
    supports = f"CUDA {number // 1000}.{number % 1000 // 10}"
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return supports
    version = re.search(r"\d+\.\d+(\.\d+)*", text)
    return f"{version[0]}, {supports}" if version else supports


def subject_of(module: Any, index: int) -> Subject:
    """A device with its driver and a build of the CUDA module."""
    device = torch.cuda.get_device_properties(index)
    capability = f"{device.major}.{device.minor}"
    return Subject(device.name, str(device.uuid), capability, _driver(module), build_of(module))


def _directory() -> Path:
    return cache_dir() / "selftest"


def path_of(subject: Subject) -> Path:
    """Where its result is stored.

    Raises:
        RuntimeError: there is no cache directory.
    """
    name = hashlib.sha256(json.dumps(astuple(subject)).encode()).hexdigest()[:24]
    return _directory() / f"{name}.json"


def _parsed(text: bytes) -> Result:
    found = json.loads(text)
    rows = tuple(Row(**row) for row in found["rows"])
    result = Result(Subject(**found["subject"]), found["when"], rows)
    texts = (*astuple(result.subject), result.when, *(text for row in rows for text in astuple(row)))
    outcomes = {row.outcome for row in rows}
    whole = all(type(text) is str for text in texts) and outcomes <= {PASSED, FAILED, LEFT_OUT}
    if not whole or found["format"] != _FORMAT:
        raise ValueError
    return result


def _read(path: Path) -> Result | None:
    """The result in a file; None if there is no file.

    Raises:
        Unreadable: there is one, but it holds no result.
    """
    try:
        result = _parsed(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        why = error.strerror or str(error)
    except (ValueError, TypeError, KeyError, RecursionError):
        why = "it is not what this version of fastnn writes"
    else:
        if path == path_of(result.subject):
            return result
        why = "it is of another device, driver or build"
    raise Unreadable(f"the result kept at {path} cannot be read ({why})")


def read(subject: Subject) -> Result | None:
    """Its result, if there is one.

    Raises:
        Unreadable: the stored result cannot be read.
        RuntimeError: there is no cache directory.
    """
    return _read(path_of(subject))


def kept(subject: Subject) -> Result | None:
    """Its result, if there is one that can be read."""
    try:
        return read(subject)
    except (Unreadable, RuntimeError):
        return None


def all_kept() -> tuple[list[Result], list[str]]:
    """The results of all devices, drivers and builds, newest first; and which files cannot be read."""
    results, unreadable = [], []
    try:
        files = sorted(_directory().glob("*.json"))
    except (RuntimeError, OSError):
        files = []
    for path in files:
        try:
            if (result := _read(path)) is not None:
                results.append(result)
        except Unreadable as why:
            unreadable.append(str(why))
    return sorted(results, key=lambda result: result.when, reverse=True), unreadable


class Proof:
    """What is known of one device."""

    def __init__(self, subject: Subject, index: int) -> None:
        self._result: Result | None = None
        self._unreadable: str | None = None
        try:
            self._result = read(subject)
        except Unreadable as why:
            self._unreadable = str(why)
        except RuntimeError:
            pass  # without a cache directory nothing is stored; `fastnn selftest` says so
        self._name = subject.name
        self._verified = subject.capability in VERIFIED_CAPABILITIES
        option = f" --device cuda:{index}" if index else ""
        self._command = f"`fastnn selftest{option}`"

    def why_not(self, op: str) -> str | None:
        """Why the kernels of an op must not run there, or None."""
        # The result in use does not change during the process.
        test = f"{self._command} and start Python again"
        if self._result is not None:
            why = self._result.why_off(op)
            return why and f"{why} (to test it again: {test})"
        if self._unreadable is not None:
            return f"{self._unreadable}: run {test}"
        if self._verified:
            return None
        return f"fastnn's CUDA kernels have not passed their self-test on this {self._name}: run {test}"
