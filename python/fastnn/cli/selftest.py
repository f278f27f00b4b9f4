"""``fastnn selftest``: whether the kernels are right on this device; CUDA kernels run only after that."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastnn.cli.errors import CliError

if TYPE_CHECKING:
    from fastnn._proof import Row
    from fastnn.selftest.parent import Found, Unusable

HELP = "test every kernel on a device; CUDA kernels are used where it has passed"


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:<number>, got {text!r}")
    return "cuda:0" if text == "cuda" else text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fastnn selftest`` to `parser`."""
    parser.add_argument("--device", type=_device, default="cuda:0", help="cpu, cuda:0 (default), cuda:1, ...")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON to standard output, and the table to standard error",
    )


def run(args: argparse.Namespace) -> int:
    """Test, keep the result and show it; the exit status is 1 where something failed."""
    from fastnn._proof import FAILED, kept, path_of
    from fastnn.selftest.parent import Interrupted, Unusable
    from fastnn.selftest.parent import run as test
    from fastnn.selftest.results import keep

    count = 0

    def progress(row: Row) -> None:
        nonlocal count
        count += 1
        if sys.stderr.isatty():
            print(f"\r\x1b[K{count} {row.op} {row.what}", end="", file=sys.stderr, flush=True)

    try:
        found = test(args.device, progress)
    except Unusable as unusable:
        _show(unusable.found, args.device, args.json, str(unusable))
        raise CliError(_void(args.device, unusable)) from None
    except Interrupted as interrupted:
        print(_after_interruption(interrupted.found), file=sys.stderr)
        raise
    finally:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    _show(found, args.device, args.json)
    subject, rows = found
    status = 1 if any(row.outcome == FAILED for row in rows) else 0
    if subject is None:
        return status
    try:
        path = keep(subject, rows)
    except (OSError, RuntimeError) as error:
        holds = (
            f"the result of an earlier one is valid until you remove {path_of(subject)}"
            if kept(subject)
            else "CUDA kernels stay off"
        )
        raise CliError(
            f"the result cannot be stored, so {holds}: {error}; set FASTNN_CACHE_DIR to store it elsewhere"
        ) from None
    print(
        f"Stored in {path}: from the next start of Python on fastnn's CUDA kernels of the ops that passed "
        "run on this device.",
        file=sys.stderr if args.json else sys.stdout,
    )
    return status


def _show(found: Found, device: str, as_json: bool, unusable: str | None = None) -> None:
    """Print what was found."""
    from fastnn._info import info
    from fastnn._proof import FAILED

    subject, rows = found
    table = sys.stderr if as_json else sys.stdout
    if as_json:
        fields = {"subject": subject and asdict(subject), "rows": [asdict(row) for row in rows]}
        print(json.dumps({**fields, "unusable": unusable, "info": info().as_dict()}, indent=1))
    if rows:
        on = device if subject is None else f"{device}, {subject.name} (driver {subject.driver})"
        failed = sum(row.outcome == FAILED for row in rows)
        print(_table(rows), file=table)
        print(f"\n{_count(rows)} on {on}: {failed or 'none'} failed", file=table)


def _void(device: str, unusable: Unusable) -> str:
    """What is wrong with a device; results of earlier self-tests on it become invalid."""
    from fastnn._proof import path_of
    from fastnn.selftest.results import void

    subject, rows = unusable.found
    more = f" after {_count(rows)}" if rows else ""
    why = f"nothing can be tested on {device}{more}: {unusable}"
    if subject is None:
        return why if device == "cpu" else f"{why} (for the CPU's kernels: --device cpu)"
    try:
        was = void(subject)
    except OSError as error:
        return f"{why}; remove {path_of(subject)}, which says otherwise: {error}"
    return f"{why}; the result of an earlier self-test on it is no longer valid" if was else why


def _after_interruption(found: Found) -> str:
    """What is valid after a run that the user has interrupted."""
    from fastnn._proof import FAILED
    from fastnn.selftest.results import add_failures

    subject, rows = found
    try:
        result = None if subject is None else add_failures(subject, rows)
    except OSError as error:
        return f"\nthe failed tests cannot be stored: {error}"
    done = f"\nended after {_count(rows)}"
    if result is None:
        return f"{done}; their results are not stored"
    failed = [op for op, outcome in result.off().items() if outcome == FAILED]
    but = f", except for what failed: {', '.join(failed)}" if failed else ""
    return f"{done}; the result of {result.when} UTC remains valid{but}"


def _count(rows: tuple[Row, ...]) -> str:
    from fastnn._diagnostics import counted

    return counted(len(rows), "test")


def _table(rows: tuple[Row, ...]) -> str:
    """A line for each op, and one for each of its tests that was not passed."""
    from fastnn._diagnostics import table
    from fastnn._proof import PASSED

    lines = [("op", "test", "outcome", "why")]
    for op in dict.fromkeys(row.op for row in rows):
        own = [row for row in rows if row.op == op]
        other = [row for row in own if row.outcome != PASSED]
        lines.append((op, "" if other else "all", f"{len(own) - len(other)} of {len(own)} passed", ""))
        lines += [("", row.what, row.outcome, row.why) for row in other]
    return table(lines)
