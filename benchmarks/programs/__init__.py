"""Training updates as people write them: whole programs to capture, not single ops.

An update is a plain PyTorch function over what it closes over; ``make()`` of each `Program` returns one and
the arguments to call it with.
"""

from __future__ import annotations

from . import reinforcement, supervised
from .program import Program

PROGRAMS: list[Program] = [*reinforcement.PROGRAMS, *supervised.PROGRAMS]
