"""The reports of one machine in one file: ``NAME.json``, which holds each by its own name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA = 4
_DIGITS = 4  # differences between repeats are larger

Document = Mapping[str, Any]


def rounded(value: Any) -> Any:
    """Plain data with its floats to four significant digits, which is all their precision."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return value


def to_text(document: Document, lines: int = 2) -> str:
    """JSON with a line for each part of the first `lines` levels: of a report, for each of its results.

    So a diff shows which of them changed.
    """
    return _layout(rounded(document), lines) + "\n"


def _layout(value: Any, lines: int) -> str:
    if not lines or not value or not isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, list):
        parts, ends = [_layout(part, lines - 1) for part in value], "[]"
    else:
        parts, ends = [f"{json.dumps(k)}: {_layout(v, lines - 1)}" for k, v in value.items()], "{}"
    return f"{ends[0]}\n" + ",\n".join(parts) + f"\n{ends[1]}"


def reports(path: Path) -> dict[str, dict[str, Any]]:
    """The reports in a summary, by name; empty if there is no such file."""
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["reports"]
    return found


def add(path: Path, made: Mapping[str, Document]) -> None:
    """Put reports into a summary, replacing those of the same names; the others stay."""
    merged = {**reports(path), **made}
    text = to_text({"schema": SCHEMA, "reports": dict(sorted(merged.items()))}, lines=4)
    path.write_text(text, encoding="utf-8")
