"""What a recording notes as the function runs: the tape, the memory that ops use, and why it has ended."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor

from fastnn import _torch_internals
from fastnn._dispatch import Unsupported
from fastnn._replaced import HOMES
from fastnn.capture.ir import Storage, View
from fastnn.capture.tape import Tape, as_view

_PLAIN = (Tensor, torch.nn.Parameter)
# Functions by which users read a value.
_READING = {
    "item",
    "is_nonzero",
    *(f"__{kind}__" for kind in ("bool", "int", "float", "complex", "index", "format")),
}
# Modules whose functions do more than call one op.
_OF_TORCH = tuple(f"torch.{name}." for name in ("nn", "optim", "amp", "distributions", "utils", "func"))


class Recording:
    """One call of a function.

    Attributes:
        refused: what it does that no recording can hold; ends this recording, but not the function.
        tape: what has been noted.
        device: of all tensors, known when the first is met.
        leaves: those that require gradients, by id.
        asked: the ids of tensors whose gradients Python has read.
        function: the name of the torch function being called.
        paused: nesting depth; nothing is noted while it is above 0.
        ran_backward: whether a backward ran, which calls the hooks of leaves.
        thread: the one in which the function runs.
    """

    def __init__(self, inputs: list[Tensor]) -> None:
        """`inputs` are the tensors among the arguments."""
        self.refused: str | None = None
        self.device: torch.device | None = None
        self.tape = Tape()
        self.leaves: dict[int, Tensor] = {}
        self.asked: set[int] = set()
        self.function: str | None = None
        self.paused = 0
        self.ran_backward = False
        self.thread = threading.get_ident()
        # By address. Torch's storages are kept alive, so that no address is reused; tensors are not, because
        # autograd copies a gradient to which there is another reference.
        self._storages: dict[int, tuple[Storage, torch.UntypedStorage]] = {}
        self._met: set[int] = set()  # addresses, met before the recording was refused
        self._made: list[tuple[Storage, weakref.ref[Tensor]]] = []
        # The tensors through which ops accessed the memory of arguments.
        self._inputs: set[int] = set()  # by id of the Storage
        self._in_inputs: list[weakref.ref[Tensor]] = []
        for tensor in inputs:
            self.device = self.device or tensor.device
            storage = self.storage_of(tensor)
            self.tape.inputs.append(
                self.first_view(tensor, None) if storage is None else as_view(tensor, storage)
            )
        self._given = {id(tensor) for tensor in inputs}
        self._inputs.update(id(view.storage) for view in self.tape.inputs)

    def refuse(self, reason: str) -> None:
        """End the recording because of what the function does."""
        if self.refused is None:
            self.refused = f"{reason}{_place()}"
            self._met.update(self._storages)
        self._storages.clear()

    def check(self, t: Tensor) -> None:
        """Raise `Unsupported` for a tensor that a replay cannot have."""
        if type(t) not in _PLAIN:
            raise Unsupported(f"{type(t).__name__} is a tensor subclass")
        if not _has_memory(t):
            raise Unsupported(f"a tensor on {t.device}, of layout {t.layout}")
        if self.device is None:
            self.device = t.device
        if t.device != self.device:
            raise Unsupported(f"a tensor on {t.device} beside others on {self.device}")
        if t.is_neg() or t.is_conj():
            raise Unsupported("a lazily negated or conjugated view")

    def view(self, tensor: Tensor) -> View:
        """The View of a tensor that an op is given."""
        storage = self.storage_of(tensor)
        view = self.first_view(tensor, tensor) if storage is None else as_view(tensor, storage)
        # Autograd makes a new tensor for a leaf that it saved: it is not the one that gets the gradient.
        if tensor.requires_grad and tensor.is_leaf and view.storage.tensor is tensor:
            self.leaves[id(tensor)] = tensor
        if self.is_argument(view.storage) and id(tensor) not in self._given:
            self._in_inputs.append(weakref.ref(tensor))
        return view

    def is_argument(self, storage: Storage) -> bool:
        """Whether it is the memory of an argument."""
        return id(storage) in self._inputs

    def is_asked(self, tensor: Tensor) -> None:
        """Python reads properties of a tensor, e.g. its shape: those of a tensor from before the recording
        may change though no op reads it."""
        if (
            type(tensor) in _PLAIN
            and self.device in (None, tensor.device)
            and _has_memory(tensor)
            and _torch_internals.has_storage(tensor)  # within vmap it represents another
            and tensor.numel()
        ):
            self.view(tensor)

    def reaches_arguments(self, others: Iterable[Tensor]) -> bool:
        """Whether the memory of an argument was also reached in another way, as a parameter's is through its
        ``.data``; called once the function has returned. `others` are tensors that it may have used."""
        made = {id(reference()) for _, reference in self._made}
        met = (reference() for reference in self._in_inputs)
        return any(t is not None and id(t) not in made for t in met) or any(
            id(self.storage_of(t)) in self._inputs for t in others if type(t) in _PLAIN and _has_memory(t)
        )

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What runs in this block is not noted."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    def result(self, tensor: Tensor) -> View:
        """The View of a tensor that an op has returned."""
        storage = self.storage_of(tensor)
        if storage is None:
            view = self.first_view(tensor, None)
            self.tape.fresh.append(view.storage)
        else:
            view = as_view(tensor, storage)
        self._made.append((view.storage, weakref.ref(tensor)))
        return view

    def first_view(self, tensor: Tensor, external: Tensor | None) -> View:
        """The View of a tensor in memory not met before."""
        base = tensor.untyped_storage()
        storage = Storage(base.nbytes(), external)
        if external is not None:
            self.tape.externals.append(storage)
        if base.nbytes():
            self._storages[base.data_ptr()] = (storage, base)
        return as_view(tensor, storage)

    def storage_of(self, tensor: Tensor) -> Storage | None:
        """The memory of a tensor, if it has been met."""
        found = self._storages.get(tensor.untyped_storage().data_ptr())
        return None if found is None else found[0]

    def has_met(self, tensor: Tensor) -> bool:
        """Whether an op was given the memory of a tensor from before, while the recording was active."""
        address = tensor.untyped_storage().data_ptr()
        return address in self._storages or address in self._met

    def reader(self) -> str | None:
        """The torch function that reads a value on its own account, not at the request of the user's code."""
        for frame in itertools.takewhile(_is_not_users, _frames()):
            module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
            if module.startswith(_OF_TORCH) and not name.startswith(("_", "<")):
                owner = frame.f_locals.get("self")
                return name if owner is None else f"{type(owner).__name__}.{name}"
        return None if self.function in _READING else self.function

    def here(self) -> bool:
        """Whether it is active in the calling thread."""
        return threading.get_ident() == self.thread and self.refused is None

    def survivors(self) -> list[Tensor]:
        """Tensors made by the function that are still referenced once it has returned."""
        fresh = set(map(id, self.tape.fresh))
        made = ((storage, reference()) for storage, reference in self._made)
        return [
            tensor
            for storage, tensor in made
            if tensor is not None and id(storage) in fresh and storage.bytes
        ]


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_not_users(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(HOMES) or "<" in frame.f_code.co_filename


def _place() -> str:
    """The line of the user's code that is running."""
    frame = next(itertools.dropwhile(_is_not_users, _frames()), None)
    return "" if frame is None else f" ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})"


def _has_memory(t: Tensor) -> bool:
    return t.layout is torch.strided and (t.is_cpu or t.is_cuda)
