"""The process in which the tests of a self-test run; it writes what it finds line by line, as JSON.

`parent.py` reads its output: first "subject" (None for the CPU, or if the device cannot be identified) and,
if nothing can be tested, "unusable"; "slow" if each kernel takes long when it is first launched; then for
each test "begin" with its number, op and name, and "outcome" with the reason. "lost" means that the device
accepts no more work from this process, and "done" that nothing is left.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from fastnn import _dispatch, _proof
from fastnn._proof import FAILED, LEFT_OUT, PASSED, Subject
from fastnn.selftest.cases import Case, cases_for
from fastnn.selftest.checks import Fault, LeftOut, poisoned

Tell = Callable[[dict[str, Any]], None]


def _open(device: torch.device) -> tuple[Subject | None, str | None]:
    """The device as named in results, or why nothing can be tested there."""
    if device.type != "cuda":
        return None, _dispatch.cpu_missing
    module, why = _dispatch.load_cuda()
    if why is None and not torch.cuda.is_available():
        why = "torch finds no GPU"
    if why is not None:
        return None, why
    index = device.index or 0
    why = module.why_unusable(index) or None
    try:
        subject = _proof.subject_of(module, index)
        if why is None:
            torch.cuda.set_device(index)
    except (RuntimeError, AssertionError) as error:  # torch's assertion is about the index
        return None, why or str(error)
    return subject, why


@poisoned()
def run(device: torch.device, cases: Sequence[Case], first: int, tell: Tell) -> None:
    """Run the tests from number `first` on."""
    subject, why = _open(device)
    tell({"subject": subject and asdict(subject)})
    if why is not None:
        tell({"unusable": why})
        return
    if device.type == "cuda" and _dispatch.load_cuda()[0].compiles_at_launch(device.index or 0):
        tell({"slow": True})
    for number, case in enumerate(cases[first:], first):
        tell({"begin": number, "op": case.op, "what": case.what})
        outcome, why = try_case(case, device)
        tell({"outcome": outcome, "why": why})
        if outcome == FAILED and _is_lost(device):
            tell({"lost": number})
            return
    tell({"done": True})


def try_case(case: Case, device: torch.device) -> tuple[str, str]:
    """The outcome of a test, and why it was not passed."""
    torch.manual_seed(0)
    try:
        case.run(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # a kernel's error may be reported later
    except LeftOut as reason:
        return LEFT_OUT, str(reason)
    except Fault as fault:
        return FAILED, str(fault)
    except Exception as error:
        return FAILED, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return PASSED, ""


def _is_lost(device: torch.device) -> bool:
    """Whether an error, such as an illegal address, has ended all work of this process on a device."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        return bool(torch.ones(1, device=device).item() != 1)
    except RuntimeError:
        return True


def main(arguments: Sequence[str], cases: Sequence[Case] | None = None) -> int:
    """Run the tests on the device given first, starting from the number given second."""
    warnings.simplefilter("ignore")  # poisoned memory makes torch issue warnings that are irrelevant here
    lines, sys.stdout = sys.stdout, sys.stderr

    def tell(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=lines, flush=True)

    device = torch.device(arguments[0])
    run(device, cases_for(device) if cases is None else cases, int(arguments[1]), tell)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
