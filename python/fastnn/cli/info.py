"""``fastnn info``: print what this installation is made of and runs on."""

from __future__ import annotations

import argparse
import json

HELP = "show versions, instruction set, CUDA module and threads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fastnn info`` to `parser`."""
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the report; the exit status is 0."""
    import fastnn

    info = fastnn.info()
    print(json.dumps(info.as_dict(), indent=2) if args.json else info)
    return 0
