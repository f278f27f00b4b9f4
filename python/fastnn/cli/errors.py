"""Errors and warnings that a user sees without a traceback."""

from __future__ import annotations

import importlib.util
import sys


class CliError(Exception):
    """Something the user can fix; its message says what. The command ends with exit code 1."""


class UsageError(CliError):
    """Options that make no sense together; shown with the usage line. The command ends with exit code 2."""


def require(extra: str, *modules: str) -> None:
    """Check that the optional `modules` are installed, which ``pip install "fastnn[extra]"`` brings.

    Raises:
        CliError: naming those that are not.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise CliError(f'{", ".join(missing)} not installed: pip install "fastnn[{extra}]"')


def warn(message: str) -> None:
    """Tell the user what may not be as expected."""
    print(f"fastnn: warning: {message}", file=sys.stderr, flush=True)
