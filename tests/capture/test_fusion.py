"""Fused runs of elementwise nodes compute the same as the nodes one by one."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest
import torch

from fastnn import _dispatch
from fastnn.capture.fusion import fuse
from fastnn.capture.ir import Elementwise, Instruction, Node, Storage, View, contiguous_strides
from fastnn.capture.overlap import canonical, extent, overlap
from one_op import _as_tensor

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

F32, F64, I64, B8 = torch.float32, torch.float64, torch.int64, torch.bool


def storage(count: int, *, planned: bool = False, dtype: torch.dtype = F32) -> Storage:
    return Storage(
        count * dtype.itemsize,
        None if planned else torch.zeros(count * dtype.itemsize, dtype=torch.uint8),
    )


def view(base: Storage, *shape: int, offset: int = 0, dtype: torch.dtype = F32) -> View:
    return View(base, offset, shape, contiguous_strides(shape), dtype)


def execute(nodes: list[Node], memory: dict[int, torch.Tensor]) -> None:
    for node in nodes:
        assert isinstance(node, Instruction)
        operands = [_as_tensor(v, memory) for v in [*node.outs, *node.ins]]
        _dispatch.cpu.testing.run_instruction(node.name, operands, node.numbers, node.code)


def names(nodes: list[Node]) -> list[str]:
    return [node.name if isinstance(node, Instruction) else type(node).__name__ for node in nodes]


def micro_ops(node: Node) -> int:
    assert isinstance(node, Instruction)
    return node.code[9]


def test_a_chain_is_one_instruction_without_stores_on_the_way() -> None:
    x, y = view(storage(6), 2, 3), view(storage(6), 2, 3)
    a, b = view(storage(6, planned=True), 2, 3), view(storage(6, planned=True), 2, 3)
    nodes: list[Node] = [
        Elementwise(a, ("mul", x, 2), F32),
        Elementwise(b, ("exp", a), F32),
        Elementwise(y, ("add", b, a), F32),
    ]
    (fused,) = fuse(nodes)
    assert fused.outs == [canonical(y, y.shape)]
    assert fused.ins == [canonical(x, x.shape)]
    assert len(fuse(nodes, kept=[a.storage])[0].outs) == 2


def test_what_a_later_node_reads_is_stored() -> None:
    x, y = view(storage(6), 6), view(storage(6), 6)
    a = view(storage(6, planned=True), 6)
    nodes: list[Node] = [
        Elementwise(a, ("mul", x, 2), F32),
        Instruction("copy", [y], [a]),
        Elementwise(x, ("add", x, 1), F32),
    ]
    fused = fuse(nodes)
    assert names(fused) == ["elementwise", "copy"]  # the addition moved up: the copy only reads a
    assert len(fused[0].outs) == 2


def test_what_nobody_reads_is_not_computed() -> None:
    x, a = view(storage(6), 6), view(storage(6, planned=True), 6)
    assert fuse([Elementwise(a, ("exp", x), F32)]) == []


@pytest.mark.parametrize("hazard", ["read", "write", "both", "none"])
def test_nodes_move_up_only_where_memory_allows(hazard: str) -> None:
    x, y, z, w = (view(storage(6), 6) for _ in range(4))
    first = Elementwise(y, ("exp", x), F32)
    between = Instruction("copy", [z], [w])
    last = Elementwise(
        w if hazard in ("write", "both") else y, ("neg", z if hazard in ("read", "both") else x), F32
    )
    fused = fuse([first, between, last])
    assert names(fused) == (
        ["elementwise", "copy"] if hazard == "none" else ["elementwise", "copy", "elementwise"]
    )


def test_columns_of_one_matrix_do_not_conflict() -> None:
    base = storage(12)
    left, right = (View(base, at, (3, 2), (4, 1), F32) for at in (0, 2))
    out = view(storage(6), 3, 2)
    nodes: list[Node] = [Elementwise(left, 1.0, F32), Elementwise(out, ("add", right, 1), F32)]
    assert names(fuse(nodes)) == ["elementwise"]
    shifted = View(base, 1, (3, 2), (4, 1), F32)
    assert len(fuse([nodes[0], Elementwise(out, ("add", shifted, 1), F32)])) == 2


def test_fusion_stops_at_a_reduction() -> None:
    x, loss = view(storage(6), 2, 3), view(storage(1))
    a = view(storage(6, planned=True), 2, 3)
    nodes: list[Node] = [
        Elementwise(a, ("square", x), F32),
        Instruction("sum", [loss], [a], [6.0], [0]),
        Elementwise(loss, ("sqrt", loss), F32),
    ]
    fused = fuse(nodes)
    assert names(fused) == ["elementwise", "elementwise"]
    memory: dict[int, torch.Tensor] = {}
    _as_tensor(x, memory).copy_(torch.arange(6.0).view(2, 3))
    execute(fused, memory)
    assert _as_tensor(loss, memory).item() == pytest.approx((55 / 6) ** 0.5)


def test_values_survive_that_are_written_over() -> None:
    a, b, c = (view(storage(40), 40) for _ in range(3))
    t = view(storage(40, planned=True), 40)
    nodes: list[Node] = [
        Elementwise(t, a, F32),
        Elementwise(c, ("add", a, b), F32),
        Elementwise(a, b, F32),
        Elementwise(b, t, F32),
    ]
    fused = fuse(nodes)
    assert names(fused) == ["elementwise"]
    memory: dict[int, torch.Tensor] = {}
    before = [torch.randn(40), torch.randn(40)]
    _as_tensor(a, memory).copy_(before[0])
    _as_tensor(b, memory).copy_(before[1])
    execute(fused, memory)
    assert _as_tensor(a, memory).equal(before[1])
    assert _as_tensor(b, memory).equal(before[0])
    assert _as_tensor(c, memory).equal(before[0] + before[1])


class RandomProgram:
    """Nodes on views of a few storages, many of which overlap."""

    SHAPES = ((), (5,), (3, 5), (3, 1), (1, 5), (2, 3, 5), (37,), (4, 130), (1, 130), (4, 1))

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.shapes = self.random.sample(self.SHAPES, 3)
        self.bases = []
        for _ in range(self.random.randint(2, 6)):
            dtype = self.random.choice([F32, F32, F32, F32, F64, I64, B8])
            self.bases.append((storage(1100, planned=self.random.random() < 0.5, dtype=dtype), dtype))
        self.views = [self.view() for _ in range(12)]
        self.nodes: list[Node] = []
        while len(self.nodes) < self.random.randint(2, 25):
            node = self.node()
            if node is not None:
                self.nodes.append(node)

    def view(self) -> View:
        base, dtype = self.random.choice(self.bases)
        shape = self.random.choice(self.shapes)
        kind = self.random.random()
        if kind < 0.6:
            strides = contiguous_strides(shape)
        elif kind < 0.8:  # with gaps
            strides = contiguous_strides((*shape[:-1], shape[-1] + 3)) if shape else ()
            strides = tuple(s for s in strides)
        else:  # transposed
            strides = tuple(reversed(contiguous_strides(tuple(reversed(shape)))))
        return View(base, self.random.choice([0, 0, 0, 1, 5]), shape, strides, dtype)

    def operand(self, out: View) -> View | float:
        for _ in range(10):
            candidate = self.random.choice(self.views)
            try:
                broadcast = torch.broadcast_shapes(candidate.shape, out.shape)
            except RuntimeError:
                continue
            if broadcast != out.shape:
                continue
            one, other = canonical(candidate, out.shape), canonical(out, out.shape)
            if one == other or not overlap(extent(one), extent(other)):
                return candidate
        return self.random.choice([1.5, -2, 0.25, 3])

    def expr(self, out: View, dtype: torch.dtype, depth: int) -> Any:
        if depth == 0 or self.random.random() < 0.2:
            operand = self.operand(out)
            if dtype.is_floating_point or isinstance(operand, View):
                return operand
            return int(operand)
        if dtype is B8:
            name = self.random.choice(["logical_and", "logical_or", "logical_xor", "logical_not"])
            count = 1 if name == "logical_not" else 2
            return (name, *(self.expr(out, dtype, depth - 1) for _ in range(count)))
        name = self.random.choice(["add", "sub", "mul", "minimum", "neg", "relu", "where", "lt", "abs"])
        if name in ("neg", "relu", "abs"):
            return (name, self.expr(out, dtype, depth - 1))
        if name == "where":
            parts = [self.expr(out, dtype, depth - 1) for _ in range(3)]
            return (name, ("ge", parts[0], 0), *parts[1:])
        return (name, self.expr(out, dtype, depth - 1), self.expr(out, dtype, depth - 1))

    def node(self) -> Node | None:
        out = self.random.choice(self.views)
        if self.random.random() < 0.1:
            source = self.operand(out)
            if (
                isinstance(source, View)
                and source.dtype is out.dtype
                and not overlap(*map(extent, (source, out)))
            ):
                if source.is_contiguous and out.is_contiguous and source.shape == out.shape:
                    return Instruction("copy", [out], [source])
                if out.numel == 1 and out.dtype.is_floating_point:
                    return Instruction("sum", [out], [source], [1.0], [0])
        dtype = self.random.choice([out.dtype, out.dtype, F32, F64])
        if out.dtype in (I64, B8):
            dtype = out.dtype
        return Elementwise(out, self.expr(out, dtype, self.random.randint(0, 3)), dtype)

    def results(self, fused: bool, kept: list[Storage]) -> list[torch.Tensor]:
        memory: dict[int, torch.Tensor] = {}
        generator = torch.Generator().manual_seed(1)
        for base, dtype in self.bases:
            values = torch.randint(-3, 4, (base.bytes // dtype.itemsize,), generator=generator).to(dtype)
            memory[id(base)] = values.view(torch.uint8).clone()
        everything = [base for base, _ in self.bases]
        if fused:
            execute(fuse(self.nodes, kept), memory)
        else:
            for node in self.nodes:
                execute(fuse([node], everything), memory)
        return [memory[id(base)] for base in everything if base.tensor is not None or base in kept]


@pytest.mark.parametrize("seed", range(8))
def test_random_programs(seed: int, isa: str) -> None:
    for trial in range(40):
        program = RandomProgram(seed * 1000 + trial)
        kept = [base for base, _ in program.bases if program.random.random() < 0.3]
        expected = program.results(False, kept)
        found = program.results(True, kept)
        for e, f in zip(expected, found, strict=True):
            assert e.equal(f), (seed, trial)


def lines_to_fuse(count: int) -> int:
    """How many Python lines run to fuse a program of that many nodes, with memory in proportion."""
    base = [view(storage(1024, planned=True), 256, 4) for _ in range(count // 12)]
    rows = [view(storage(4), 4) for _ in range(5)]
    chooser = random.Random(0)
    nodes: list[Node] = []
    for at in range(count):
        if at % 5 == 4:
            nodes.append(Instruction("other", [chooser.choice(base)], chooser.sample(base, 2)))
        else:
            x, y, z = chooser.sample(base, 3)
            nodes.append(Elementwise(x, ("add", ("mul", y, chooser.choice(rows)), z), F32))
    lines = 0

    def look(frame: Any, event: str, _: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        fuse(nodes, [v.storage for v in base])
    finally:
        sys.settrace(before)
    return lines


def test_the_work_of_fusing_grows_with_the_program() -> None:
    """Not with its square: for a step of hundreds of ops that would take seconds."""
    small, large = lines_to_fuse(250), lines_to_fuse(500)
    assert large < 2.2 * small
