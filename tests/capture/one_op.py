"""Runs one of torch's ops as the instructions that it is lowered to."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastnn import _dispatch
from fastnn._dispatch import Unsupported
from fastnn.capture.ir import Instruction, Island, Storage, View
from fastnn.capture.lowering.table import Lowering, lower


def _as_tensor(view: View, memory: dict[int, torch.Tensor]) -> torch.Tensor:
    storage = view.storage
    if id(storage) not in memory:
        memory[id(storage)] = (
            torch.empty(storage.bytes, dtype=torch.uint8) if storage.tensor is None else storage.tensor
        )
    base = memory[id(storage)].untyped_storage()
    return torch.empty(0, dtype=view.dtype).set_(base, view.offset, view.shape, view.strides)


class Native(TorchDispatchMode):
    """Runs ops in torch, and then again natively on the same inputs; ``results`` has both."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[tuple[str, Any, Any]] = []  # name, torch's results, native ones

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        memory: dict[int, torch.Tensor] = {}
        storages: dict[int, Storage] = {}
        keep: list[torch.Tensor] = []

        def view_of(t: torch.Tensor) -> View:
            if t.layout is not torch.strided:
                raise Unsupported(f"a tensor of layout {t.layout}")
            base = t.untyped_storage()
            key = base._cdata
            if key not in storages:
                copied = torch.empty(base.nbytes(), dtype=torch.uint8)
                if base.nbytes():
                    copied.untyped_storage().copy_(base)
                storages[key] = Storage(base.nbytes(), copied)
                keep.append(t)
            return View(storages[key], t.storage_offset(), tuple(t.shape), tuple(t.stride()), t.dtype)

        def swap(x: Any) -> Any:
            if isinstance(x, torch.Tensor):
                return view_of(x)
            return [swap(e) for e in x] if isinstance(x, (list, tuple)) else x

        native_args = tuple(swap(a) for a in args)
        native_kwargs = {k: swap(v) for k, v in kwargs.items()}
        out = func(*args, **kwargs)
        result = swap(out)
        for storage in storages.values():  # results hold torch's values: they must be overwritten
            if not any(storage is v.storage for v in _views([native_args, native_kwargs])):
                storage.tensor.fill_(0xA5)
        name = f"{func._schema.name.removeprefix('aten::')}.{func._overloadname}"
        low = Lowering()
        if not lower(low, name, result, native_args, native_kwargs):
            raise NotImplementedError(name)
        if name.startswith(("empty", "new_empty")) or any(isinstance(node, Island) for node in low.nodes):
            return out  # uninitialised memory, or random numbers, which torch draws
        run_nodes(low.nodes, memory)
        self.results.append((name, out, _tensors(result, memory)))
        return out


def run_nodes(nodes: list[Any], memory: dict[int, torch.Tensor]) -> None:
    from fastnn.capture.fusion import fuse

    for node in fuse(nodes):
        assert isinstance(node, Instruction)
        operands = [_as_tensor(v, memory) for v in [*node.outs, *node.ins]]
        _dispatch.cpu.testing.run_instruction(node.name, operands, node.numbers, node.code)


def _views(x: Any) -> list[View]:
    if isinstance(x, View):
        return [x]
    if isinstance(x, dict):
        x = list(x.values())
    return [v for e in x for v in _views(e)] if isinstance(x, (list, tuple)) else []


def _tensors(x: Any, memory: dict[int, torch.Tensor]) -> Any:
    if isinstance(x, View):
        return _as_tensor(x, memory)
    return [_tensors(e, memory) for e in x] if isinstance(x, list) else x
