"""Native kernel or torch: the one place that decides, and reports why.

A native kernel runs when fastnn is enabled, every tensor is a plain strided tensor of a covered dtype on the
CPU (or all are on one CUDA device, if the op has CUDA kernels), and no transform is active that must
see torch's own ops. Otherwise the op's torch twin runs.

The CUDA module is imported with the first CUDA tensor, and whether it can run there is checked once per
device: its kernels must have passed their self-test there (`_proof`), unless FASTNN_CUDA_UNPROVEN is set.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastnn import _proof, _replaced
from fastnn import _torch_internals as _internals
from fastnn._labels import LabelledModule
from fastnn._torch_internals import FORWARD_LEVEL

logger = logging.getLogger("fastnn")

DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})
MAX_DIMS = 8  # of a tensor passed to a native kernel


class Unsupported(Exception):
    """What native code does not cover; its text says why, and torch does the work."""


def refuse(reason: str | None) -> None:
    """Raise `Unsupported` for a reason, if there is one."""
    if reason is not None:
        raise Unsupported(reason)


class Decision(NamedTuple):
    """Where one call of an op ran; `reason` is None for a native kernel, else why torch ran it."""

    op: str
    reason: str | None


class Conversion(NamedTuple):
    """What `convert` or `revert` did to one module or optimizer.

    Attributes:
        name: the qualified name in the model, "" for the root or an optimizer.
        kind: the name of the class that it had.
        became: the name of the class that it has now, or None if it was left alone.
        note: why it was left alone, and what in it fuses; may be empty.
    """

    name: str
    kind: str
    became: str | None
    note: str


def _switched_on(variable: str) -> bool:
    """Whether an environment variable is on; 0, false, no, off, empty and unset mean off."""
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no", "off")


def _load(name: str) -> tuple[Any, str | None]:
    """Import the compiled module `name`; on failure (None, why)."""
    try:
        module: ModuleType = importlib.import_module(f"fastnn.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"fastnn.{name}":
            raise
        return None, f"the compiled module fastnn.{name} is not built in this installation"
    except ImportError as error:
        return None, f"the compiled module fastnn.{name} does not load: {error}"
    return module, None


def _unreadable(module: Any) -> str | None:
    """Why the compiled module cannot read this torch's tensors, or None."""
    if _internals.dispatch_modes():
        return None  # it makes tensors of its own kind, so nothing can be tested
    try:
        module.probe_copy(*(torch.zeros(1, dtype=torch.float32, device="cpu") for _ in range(2)))
    except (TypeError, RuntimeError):
        return (
            f"torch {torch.__version__} does not hand tensors over as fastnn expects (DLPack's exchange API)"
        )
    return None


def _load_cpu() -> tuple[Any, str | None]:
    """The CPU module with the instruction set of FASTNN_CPU_ISA selected; without it (None, why)."""
    missing = _internals.missing_check
    if missing is not None:
        return None, f"torch {torch.__version__} lacks a check that fastnn relies on ({missing})"
    module, reason = _load("_cpu")
    if module is not None:
        reason = _unreadable(module)
        if reason is not None:
            return None, reason
        # Not while the module loads: a wrong name must raise its ValueError, not look like a module that does
        # not load.
        module.select_isa(os.environ.get("FASTNN_CPU_ISA", "").lower())
    return module, reason


@functools.cache
def load_cuda() -> tuple[Any, str | None]:
    """The CUDA module, or (None, why there is none); needs no driver and makes no CUDA context."""
    if torch.version.hip is not None:
        return None, "this torch is a ROCm build"
    return _load("_cuda")


@functools.cache
def _device_reason(index: int) -> str | None:
    """Why the CUDA module cannot run on a device, or None; `cuda` is loaded then."""
    global cuda
    module, reason = load_cuda()
    if module is None:
        return reason
    cuda = module
    return module.why_unusable(index) or None


@functools.cache
def _proof_on(index: int) -> _proof.Proof:
    """What is known of a device; `cuda` is loaded."""
    return _proof.Proof(_proof.subject_of(cuda, index), index)


@functools.cache
def _kernels_reason(index: int, op: str) -> str | None:
    """Why the CUDA kernels of an op may not run on a device, or None."""
    reason = _device_reason(index)
    if reason is not None or cuda_unproven:
        return reason
    try:
        proof = _proof_on(index)
    except (OSError, RuntimeError, AssertionError) as error:  # driver or file cannot be queried
        return f"device, driver or build cannot be determined: {error}"
    return proof.why_not(op)


_is_compiling = torch.compiler.is_compiling
_forward_ad = vars(torch.autograd.forward_ad)


def quiet_states() -> list[tuple[Callable[[], Any], Any]]:
    """Most queries of `torch_reason`, with their answers if nothing is special, always the same objects."""
    return [
        (_internals.functorch_level, None),
        (_internals.dispatch_modes, 0),
        (_internals.function_modes, 0),
        (_internals.any_autocast, False),
        (_internals.jit_state, None),
        (_replaced.functions.unchanged, True),
    ]


def default_device() -> torch.device | None:
    """Where new tensors are made, None if none has been set."""
    return torch.get_default_device() if _internals.function_modes() else None


def present_states() -> list[tuple[Callable[[], Any], Any]]:
    """`quiet_states` of a recording: one of code that makes tensors is valid only with the present default
    device."""
    modes, device = _internals.function_modes(), default_device()
    states = [(ask, modes if ask is _internals.function_modes else quiet) for ask, quiet in quiet_states()]
    if modes:
        states.append((lambda: _only_device_modes() and default_device() == device, True))
    return states


def _plain_call() -> Any:
    """A function that makes most checks of `torch_reason` in one call."""
    return cpu.PlainCall(PLAIN_TYPES, quiet_states()).__call__


_loaded, cpu_missing = _load_cpu()
if TYPE_CHECKING:
    from fastnn import _cpu

    cpu = _cpu  # None if it is missing
else:
    cpu = _loaded
if cpu_missing is None:
    _replaced.functions.watch(cpu.Watch())
    _replaced.classes.watch(cpu.Watch())
    _replaced.losses.watch(cpu.Watch())
    _is_plain_call = _plain_call()
else:
    warnings.warn(f"fastnn runs on plain torch ops: {cpu_missing}.", RuntimeWarning, stacklevel=3)

cuda: Any = None

_DISABLED = "fastnn is disabled"
_RECORDED = "a captured function is being recorded"
# Why torch's ops run, one entry per active block that asks for them; replaced at each change, for other
# threads.
_off: tuple[str, ...] = (_DISABLED,) if _switched_on("FASTNN_DISABLE") else ()
_off_lock = threading.Lock()
# Whether an op on CUDA waits for a kernel that may find an error, to raise it at once.
check_at_once = _switched_on("FASTNN_CHECK")
# Whether ops run natively however small they are (`ops/sizes.py`).
always_native = _switched_on("FASTNN_ALWAYS_NATIVE")
# Whether CUDA kernels run that have not passed their self-test: in the self-test, and in tests.
cuda_unproven = _switched_on("FASTNN_CUDA_UNPROVEN")
_log_decisions = _switched_on("FASTNN_LOG")
_logged: set[Decision] = set()
_recorders: list[Callable[[Any], None]] = []


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Run every fastnn op inside the block with plain torch ops.

    Process-wide: it affects other threads too, until the block ends.
    """
    with _torch_only(_DISABLED):
        yield


def recorded() -> contextlib.AbstractContextManager[None]:
    """Like `disabled`, while a captured function is recorded, which records torch's ops."""
    return _torch_only(_RECORDED)


@contextlib.contextmanager
def _torch_only(why: str) -> Iterator[None]:
    global _off
    with _off_lock:
        _off = (*_off, why)
    try:
        yield
    finally:
        with _off_lock:
            kept = list(_off)
            kept.remove(why)
            _off = tuple(kept)


def is_disabled() -> bool:
    """Whether torch's ops have been asked for, by `disabled`, `recorded` or FASTNN_DISABLE."""
    return bool(_off)


@contextlib.contextmanager
def recording(recorder: Callable[[Any], None]) -> Iterator[None]:
    """Call `recorder` with every `Decision` taken and every `Conversion` done inside the block."""
    _recorders.append(recorder)
    try:
        yield
    finally:
        _recorders.remove(recorder)


def native(t: Tensor) -> Any:
    """The compiled module for tensors where `t` is; only after `torch_reason` returned None.

    Compare it to `cpu` by ``==``: while a profiler runs it is a stand-in.
    """
    kernels = cpu if t.is_cpu else cuda
    return LabelledModule(kernels) if _internals.is_profiling() else kernels


def _tensor_reason(t: Tensor, on_cuda: bool) -> str | None:
    if type(t) not in PLAIN_TYPES:
        kind = "a tensor subclass" if isinstance(t, torch.Tensor) else "not a tensor"
        return f"{type(t).__name__} is {kind}"
    if not (t.is_cuda if on_cuda else t.is_cpu):
        return "devices are mixed" if on_cuda else f"no kernels for device {t.device.type}"
    if not _internals.has_storage(t):
        # Sparse and opaque layouts, and the batched tensors of is_grads_batched and vectorized jacobians.
        strided = t.layout is torch.strided
        return "the tensor is batched by a transform" if strided else f"no kernels for layout {t.layout}"
    if t.dtype not in DTYPES:
        return f"no kernels for dtype {t.dtype}"
    if t.is_nested:
        return "the tensor is nested"
    if t.is_neg():
        return "the tensor is a lazily negated view"
    return None


def _only_device_modes() -> bool:
    # set_default_device and `with torch.device(...)` are function modes that change factories only.
    modes = [_internals.function_mode_at(i) for i in range(_internals.function_modes())]
    return all(type(mode) is _internals.DeviceContext for mode in modes)


def _transform_reason() -> str | None:
    if _is_compiling():
        return "torch.compile is tracing"
    if _internals.functorch_level() is not None:
        return "a functorch transform is active"
    if _forward_ad[FORWARD_LEVEL] >= 0:
        return "forward-mode AD is active"
    if _internals.dispatch_modes():
        return "a torch dispatch mode is active"
    if _internals.function_modes() and not _only_device_modes():
        return "a torch function mode is active"
    if _internals.any_autocast() and torch.is_autocast_enabled("cpu"):
        return "autocast is active"
    if _internals.jit_state() is not None:
        return "torch.jit is tracing"
    return _replaced.replaced_function()


def _cuda_reason(op: str, tensors: tuple[Tensor | None, ...]) -> str | None:
    """Why an op's CUDA kernels may not run, besides the reasons that apply to any op."""
    if _internals.any_autocast() and torch.is_autocast_enabled("cuda"):
        return "autocast is active"
    devices = {t.device for t in tensors if t is not None}
    if len(devices) > 1:
        return "devices are mixed"
    return _kernels_reason(devices.pop().index, op)


def torch_reason(*tensors: Tensor | None, cuda: str | None = None) -> str | None:
    """Why torch must run an op on these tensors, or None if a native kernel may.

    Args:
        tensors: what the op is called with; all but the first may be None.
        cuda: the CUDA kernels of the op, by their name in the self-test; None if it has none.
    """
    off = _off
    if off:
        return off[-1]
    if cpu_missing is not None:
        return cpu_missing
    if not _is_compiling() and _forward_ad[FORWARD_LEVEL] < 0 and _is_plain_call(tensors):
        return None  # nearly always; what follows finds the reason
    reason = _transform_reason()
    if reason is not None:
        return reason
    on_cuda = cuda is not None and bool(tensors) and getattr(tensors[0], "is_cuda", False)
    dtype = None
    for t in tensors:
        if t is None:
            if dtype is None:
                return "NoneType is not a tensor"  # only arguments after the first are optional
            continue
        reason = _tensor_reason(t, on_cuda)
        if reason is not None:
            return reason
        if dtype is None:
            dtype = t.dtype
        elif t.dtype is not dtype:
            return f"tensors of {dtype} and {t.dtype} are mixed"
    return _cuda_reason(cuda, tensors) if cuda is not None and on_cuda else None


def use_native_backward(op: str, *tensors: Tensor | None, cuda: str | None = None) -> bool:
    """Whether the native kernel of a backward may run; logs and records the decision.

    If the backward is itself differentiated, torch's ops keep that exact.
    """
    reason = "create_graph is set" if torch.is_grad_enabled() else torch_reason(*tensors, cuda=cuda)
    return decide(op, reason)


def decide(op: str, reason: str | None) -> bool:
    """Log and record where `op` runs: natively if `reason` is None; returns whether it does."""
    if _log_decisions or _recorders:
        _report(Decision(op, reason))
    return reason is None


def is_recording() -> bool:
    """Whether there is a recorder for what is passed to `record`."""
    return bool(_recorders)


def record(what: Decision | Conversion) -> None:
    """Pass it to all recorders."""
    for recorder in _recorders:
        recorder(what)


def _report(decision: Decision) -> None:
    record(decision)
    if _log_decisions and decision not in _logged:
        _logged.add(decision)
        where = "its native kernel" if decision.reason is None else f"torch ({decision.reason})"
        logger.warning("fastnn: %s ran on %s", decision.op, where)
