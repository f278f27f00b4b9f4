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

HELP = "test every kernel on a device; CUDA kernels are used where it has passed"


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:<number>, got {text!r}")
    return "cuda:0" if text == "cuda" else text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fastnn selftest`` to `parser`."""
    parser.add_argument("--device", type=_device, default="cuda:0", help="cpu, cuda:0 (default), cuda:1, ...")
    parser.add_argument("--json", action="store_true", help="print a JSON object, to send or to keep")


def run(args: argparse.Namespace) -> int:
    """Test, keep the result and show it; the exit status is 1 where something failed."""
    from fastnn._proof import FAILED
    from fastnn.selftest.parent import Unusable, keep
    from fastnn.selftest.parent import run as test

    count = 0

    def progress(row: Row) -> None:
        nonlocal count
        count += 1
        if sys.stderr.isatty():
            print(f"\r\x1b[K{count} {row.op} {row.what}", end="", file=sys.stderr, flush=True)

    try:
        subject, rows = test(args.device, progress)
    except Unusable as reason:
        raise CliError(f"nothing can be tested on {args.device}: {reason}") from None
    finally:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    failed = [row for row in rows if row.outcome == FAILED]
    if args.json:
        found = {"subject": subject and asdict(subject), "rows": [asdict(row) for row in rows]}
        print(json.dumps(found, indent=1))
    else:
        print(_table(rows))
        on = args.device if subject is None else f"{args.device}, {subject.name} (driver {subject.driver})"
        print(f"\n{len(rows)} tests on {on}: " + (f"{len(failed)} failed" if failed else "none failed"))
    if subject is None:
        return 1 if failed else 0
    try:
        path = keep(subject, rows)
    except (OSError, RuntimeError) as error:
        raise CliError(
            f"the result cannot be kept, so CUDA kernels stay off: {error}; "
            "FASTNN_CACHE_DIR names another place"
        ) from None
    if not args.json:
        print(f"Kept in {path}: fastnn's CUDA kernels of the ops that passed run on this device from now on.")
    return 1 if failed else 0


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
