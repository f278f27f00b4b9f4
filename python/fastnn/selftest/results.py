"""Writes what self-tests find where `_dispatch` looks for it.

A completed run replaces the result of an earlier one. A run that finds the device unusable, or whose process
ends through no fault of a test, voids it. One that the user interrupts leaves it, except for the ops that it
has seen fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from fastnn._proof import FAILED, Result, Row, Subject, kept, path_of
from fastnn.data.atomic import atomic_file


def _write(result: Result) -> Path:
    path = path_of(result.subject)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(result.as_json().encode())
    return path


def keep(subject: Subject, rows: Sequence[Row]) -> Path:
    """Write a result; returns its file.

    Raises:
        OSError: it cannot be written.
        RuntimeError: there is no cache directory.
    """
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    return _write(Result(subject, when, tuple(rows)))


def void(subject: Subject) -> bool:
    """Remove the result; returns whether there was one.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        path_of(subject).unlink()  # even if unreadable here: it is no longer valid for any user
    except (FileNotFoundError, NotADirectoryError, RuntimeError):
        return False
    return True


def add_failures(subject: Subject, rows: Sequence[Row]) -> Result | None:
    """Add the failures of an interrupted run to the result, if there is one; returns the result now in force.

    Raises:
        OSError: it cannot be written.
    """
    result = kept(subject)
    failed = tuple(row for row in rows if row.outcome == FAILED)
    if result is not None and failed:
        result = dataclasses.replace(result, rows=(*result.rows, *failed))
        _write(result)
    return result
