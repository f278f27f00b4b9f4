"""Entry point of ``fastnn``: finds the subcommand and runs it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from fastnn._version import __version__
from fastnn.cli.errors import CliError, UsageError

_COMMANDS = ("train", "bench", "demo", "selftest", "info")
"""Each is a module of this package with HELP, add_arguments(parser) and run(args) -> exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fastnn`` with `arguments` (None: those of the process) and return the exit code.

    0: done. 1: an error that the user can fix. 2: bad options. 130: interrupted by Ctrl-C. 141: the reader of
    the output has exited, as in ``fastnn info | head -1``; the code of a process that a broken pipe ends.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # short output fails here, and not only when the interpreter ends
    except BrokenPipeError:
        # Discard what is still in the buffer: flushing it when the interpreter ends would raise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="fastnn", description="Fused neural-network training for PyTorch.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fastnn {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    commands = {}
    for name in _COMMANDS:
        module = importlib.import_module(f"fastnn.cli.{name}")
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        module.add_arguments(subparser)
        commands[name] = (module, subparser)
    options, unknown = parser.parse_known_args(arguments)
    module, subparser = commands[options.command]
    if unknown:  # parse_args would show the usage of `fastnn`, where the command's options are not
        subparser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        code: int = module.run(options)
    except UsageError as error:
        subparser.error(str(error))
    except CliError as error:
        print(f"fastnn {options.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nfastnn {options.command}: interrupted", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
