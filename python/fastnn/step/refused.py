"""Why a step is not native."""

from __future__ import annotations

_LONGEST_PAUSE = 63


class WarmUp(str):
    """A harmless reason for an eager step: a captured step begins with some."""

    __slots__ = ()


class Refused:
    """Why a step is not native, and for how many calls that is assumed before it is checked again.

    The check takes longer than a small step; the pause doubles each time in a row, from 0 up to
    `_LONGEST_PAUSE`, so that it costs next to nothing in a model that never fits.
    """

    def __init__(self, reason: str, last: Refused | None) -> None:
        self.reason = reason
        self.pause: int = 0 if last is None else min(2 * last.pause + 1, _LONGEST_PAUSE)
        self.left = self.pause

    def is_believed(self) -> bool:
        """Whether this call, which is counted, can skip the check."""
        if self.left == 0:
            return False
        self.left -= 1
        return True
