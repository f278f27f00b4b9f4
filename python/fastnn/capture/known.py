"""What a captured function knows of its calls with one signature, and when it gives that signature up."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fastnn.capture.recorder import Recorder
from fastnn.capture.surroundings import Surroundings
from fastnn.capture.tape import Step, Tape

# A recording and its comparison take as long as some tens of eager calls. A program that was replayed less
# often before it was evicted by another was wasted; after so many of them a signature is given up.
WORTH = 32  # replays
_MOST_WASTED = 2
# A signature is given up after this many recordings that were replaced before they were worth it: what the
# function reaches changes every time.
_MOST_REPLACED = 7
# It is tried again after this many calls, then after twice as many each time, with fewer recordings.
_PAUSE = 64
_RETRIES = 3
_WHAT_IT_DEPENDS_ON = "memory, gradients or hooks of tensors or modules"


class Known:
    """What is known of the calls with one signature."""

    def __init__(self, family: Hashable, pause: int = _PAUSE, *, again: bool = False) -> None:
        """Nothing yet; a refusal for what may pass is forgotten after `pause` calls. `again`: one was."""
        self.family = family
        self.surveyed = False
        # Programs replaced by another recording before they were worth their own.
        self.replaced = _MOST_REPLACED - _RETRIES if again else 0
        self.pause = pause
        self.left: int | None = None  # of these calls
        self.wasted = 0  # programs evicted before they were worth their recording
        self.refused: str | None = None
        self.names: Surroundings | None = None  # of the last program
        self.drew = False  # random numbers from generators other than torch's
        # Parameters whose .grad the function may set: what it does with a gradient shows in a later call.
        self.leaves: dict[int, Tensor] = {}
        self.optimizers: dict[int, Optimizer] = {}  # that took steps
        self.others = False  # whether the last call used different ones from the call before
        # Modules and optimizers that the function called, by their ids: the next recording watches them.
        self.called: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def is_outdated(self) -> bool:
        """Whether it is time to forget the refusal; counts the calls."""
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0

    def another_try(self) -> Known:
        """Nothing again, for after a refusal that is forgotten."""
        return Known(self.family, 2 * self.pause, again=True)

    def was_wasted_too_often(self) -> bool:
        """Whether programs do not pay off, since others evict them."""
        return self.wasted == _MOST_WASTED

    def was_replaced_too_often(self) -> bool:
        """Whether recordings do not last; if so, the pause begins."""
        if self.replaced != _MOST_REPLACED:
            return False
        self.left = self.pause
        return True

    def what_differs(self) -> str:
        """What recordings did not outlast."""
        differing = sorted(set(self.names.differing())) if self.names is not None else []
        return ", ".join(differing) or _WHAT_IT_DEPENDS_ON

    def learn(
        self, recorder: Recorder, before: dict[int, tuple[Tensor, Tensor | None]]
    ) -> tuple[list[nn.Module | Optimizer], bool]:
        """Note what a call has done, or why it is refused; `before` are the gradients that it found.

        Returns:
            The modules and optimizers it has called that the call before has not, and whether a program may
            be made of it: nothing new was found that must be known before a call.
        """
        recording, optimizers = recorder.recording, recorder.steps.optimizers
        ran = _called(recording.tape)
        new = [each for key, each in ran.items() if key not in self.called]
        unknown = any(key not in before and p.grad is not None for key, p in recording.leaves.items())
        others = self.surveyed and not optimizers.keys() <= self.optimizers.keys()
        if recording.refused is not None:
            self.refused = recording.refused
        elif others and self.others:
            self.refused = "it uses another optimizer in every call: make it once, outside"
        is_as_known = self.surveyed and self.refused is None and not (unknown or others)
        self.leaves, self.called = recording.leaves, weakref.WeakValueDictionary(ran)
        self.surveyed, self.others, self.optimizers = True, others, optimizers
        return new, is_as_known


def _called(tape: Tape) -> dict[int, nn.Module | Optimizer]:
    """Modules and optimizers that did something in a recording, by their ids."""
    called: list[nn.Module | Optimizer] = [*tape.modules]
    called += [entry.optimizer for entry in tape.entries if isinstance(entry, Step)]
    return {id(each): each for each in called}
