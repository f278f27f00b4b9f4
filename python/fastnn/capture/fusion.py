"""Fuses runs of elementwise nodes into one instruction each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypeAlias

from fastnn.capture.elementwise_program import assemble
from fastnn.capture.expression import Values
from fastnn.capture.ir import Elementwise, Expr, Instruction, Node, OptimizerStep, Storage, View
from fastnn.capture.overlap import Extent, canonical, extent, is_flat, overlap

# What a group may hold: its registers must fit in the cache and the arrays of the kernel (program.h).
_MOST_OPS, _MOST_OPERANDS = 64, 32

_Shape: TypeAlias = "tuple[int, ...]"


@dataclass(eq=False)
class _Access:
    """Memory that an item reads or writes; `view` is the canonical one if it is iterated over element by
    element with the rest of a group."""

    item: int
    extent: Extent
    view: View | None
    writes: bool


@dataclass(eq=False)
class _Candidate:
    """A node that can be part of a group."""

    node: Elementwise | Instruction  # a sum over everything
    shape: _Shape
    reads: list[View]
    writes: View | None
    total: View | None
    flat: bool
    ops: int


@dataclass(eq=False)
class _Group:
    item: int
    shape: _Shape
    members: list[_Candidate] = field(default_factory=list)
    flat: bool = True
    one_shape: bool = True
    ops: int = 0
    operands: int = 0

    def takes(self, candidate: _Candidate) -> bool:
        """Whether there is room and the shapes agree."""
        if self.ops + candidate.ops > _MOST_OPS:
            return False
        if self.operands + len(candidate.reads) + 1 > _MOST_OPERANDS:
            return False
        if candidate.flat and self.flat:
            return True
        return self.one_shape and candidate.shape == self.shape

    def add(self, candidate: _Candidate) -> None:
        """Append it."""
        self.one_shape = self.one_shape and candidate.shape == self.shape
        self.flat = self.flat and candidate.flat
        self.ops += candidate.ops
        self.operands += len(candidate.reads) + 1
        self.members.append(candidate)


def fuse(nodes: list[Node], kept: Collection[Storage] = ()) -> list[Node]:
    """The same program with instructions instead of the elementwise nodes.

    Nodes move up to an earlier one of their shape where no memory dependence forbids it. Intermediate results
    in the program's own memory are not stored, unless something reads them later or they are `kept`.
    """
    return _Fusion(frozenset(kept)).run(nodes)


class _Fusion:
    def __init__(self, kept: frozenset[Storage]) -> None:
        self.kept = kept
        self.items: list[Node | _Group] = []
        self.accesses: dict[Storage, list[_Access]] = {}
        self.groups: dict[int, list[_Group]] = {}  # by number of elements
        self.last_optimizer = -1

    def run(self, nodes: list[Node]) -> list[Node]:
        """The new program."""
        for node in nodes:
            candidate = _candidate(node)
            if candidate is not None:
                self._add_candidate(candidate)
            elif not isinstance(node, Elementwise):  # an empty one
                self._add_other(node)
        result: list[Node] = []
        for item in self.items:
            if isinstance(item, _Group):
                instruction = self._instruction(item)
                if instruction is not None:
                    result.append(instruction)
            else:
                result.append(item)
        return result

    def _add_other(self, node: Node) -> None:
        item = len(self.items)
        self.items.append(node)
        if isinstance(node, OptimizerStep):
            self.last_optimizer = item
        for view in node.ins:
            self._note(_Access(item, extent(view), None, False))
        for view in node.outs:
            self._note(_Access(item, extent(view), None, True))

    def _note(self, access: _Access) -> None:
        self.accesses.setdefault(access.extent.storage, []).append(access)

    def _add_candidate(self, candidate: _Candidate) -> None:
        accesses = [_Access(-1, extent(view), view, False) for view in candidate.reads]
        if candidate.writes is not None:
            accesses.append(_Access(-1, extent(candidate.writes), candidate.writes, True))
        if candidate.total is not None:
            accesses.append(_Access(-1, extent(candidate.total), None, True))
        group = self._group_for(candidate, accesses)
        group.add(candidate)
        for access in accesses:
            access.item = group.item
            self._note(access)

    def _group_for(self, candidate: _Candidate, accesses: list[_Access]) -> _Group:
        floor, joins = self._floor(accesses)
        if floor >= 0 and joins:
            item = self.items[floor]
            if isinstance(item, _Group) and item.takes(candidate):
                return item
        count = 1
        for n in candidate.shape:
            count *= n
        groups = self.groups.setdefault(count, [])
        for group in reversed(groups):
            if group.item <= floor:
                break
            if group.takes(candidate):
                return group
        group = _Group(len(self.items), candidate.shape)
        groups.append(group)
        self.items.append(group)
        return group

    def _floor(self, accesses: list[_Access]) -> tuple[int, bool]:
        """The last item that something with these accesses must not precede, or -1, and whether it may join
        that item's group."""
        floor, joins = -1, True
        for access in accesses:
            # An optimizer's step may touch memory that it does not declare, but not the program's own.
            if access.extent.storage.tensor is not None and self.last_optimizer > floor:
                floor, joins = self.last_optimizer, False
            for other in self.accesses.get(access.extent.storage, ()):
                if other.item < floor or not (access.writes or other.writes):
                    continue
                if not overlap(access.extent, other.extent):
                    continue
                same = access.view is not None and access.view == other.view
                if other.item > floor:
                    floor, joins = other.item, same
                else:
                    joins = joins and same
        return floor, joins

    def _instruction(self, group: _Group) -> Instruction | None:
        values = Values()
        for member in group.members:
            node = member.node
            if isinstance(node, Elementwise):
                values.add(node)
            else:
                values.add_total(node.outs[0], node.ins[0], node.numbers[0])
        shape = group.shape
        if group.flat:
            count = 1
            for n in shape:
                count *= n
            shape = () if count == 1 else (count,)
        return assemble(values, shape, self._is_needed_after(group.item))

    def _is_needed_after(self, item: int) -> Callable[[View], bool]:
        def is_needed(view: View) -> bool:
            storage = view.storage
            if storage.tensor is not None or storage in self.kept:
                return True
            own = extent(view)
            return any(
                other.item > item and not other.writes and overlap(own, other.extent)
                for other in self.accesses[storage]
            )

        return is_needed


def _without_ones(shape: _Shape) -> _Shape:
    return tuple(n for n in shape if n != 1) if 1 in shape else shape


def _candidate(node: Node) -> _Candidate | None:
    if isinstance(node, Elementwise):
        shape = node.out.shape
        if 0 in shape:
            return None
        writes = canonical(node.out, shape)
        reads = [canonical(view, shape) for view in node.ins]
        flat = is_flat(writes) and all(map(is_flat, reads))
        return _Candidate(node, _without_ones(shape), reads, writes, None, flat, _op_count(node.expr) + 1)
    if isinstance(node, Instruction) and is_full_sum(node):
        view = canonical(node.ins[0], node.ins[0].shape)
        total = canonical(node.outs[0], node.outs[0].shape)
        return _Candidate(node, _without_ones(node.ins[0].shape), [view], None, total, is_flat(view), 1)
    return None


def is_full_sum(node: Instruction) -> bool:
    """Whether an instruction adds up all elements of its operand, in floating point."""
    return (
        node.name == "sum"
        and node.outs[0].numel == 1
        and node.outs[0].dtype.is_floating_point
        and node.outs[0].dtype is node.ins[0].dtype
    )


def _op_count(expr: Expr) -> int:
    if isinstance(expr, View):
        return 1  # at most, to be converted
    if not isinstance(expr, tuple):
        return 0
    return 1 + sum(map(_op_count, expr[1:]))
