"""Which instructions are needed, and where in the arena their memory lies."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fastnn.capture.ir import Island, Node, OptimizerStep, Storage

_ALIGNMENT = 64  # bytes: a cache line, and one AVX-512 vector


def without_dead(nodes: Sequence[Node], kept: Collection[Storage]) -> list[Node]:
    """The nodes without those whose results nobody reads.

    Torch draws random numbers in order, so what draws stays. `kept` is memory that is read after the last
    node.
    """
    wanted = set(map(id, kept))
    live: list[Node] = []
    for node in reversed(nodes):
        needed = (
            isinstance(node, OptimizerStep)
            or (isinstance(node, Island) and node.random)
            or any(view.storage.tensor is not None or id(view.storage) in wanted for view in node.outs)
        )
        if needed:
            wanted.update(id(view.storage) for view in node.ins)
            live.append(node)
    return live[::-1]


class Arena:
    """Offsets of the planned memory of `nodes`: memory that is not needed at the same time overlaps."""

    def __init__(self, nodes: Sequence[Node], kept: Collection[Storage]) -> None:
        """Lay it out."""
        kept_ids = set(map(id, kept))
        spans: dict[int, tuple[Storage, int, int]] = {}
        for at, node in enumerate(nodes):
            for view in (*node.outs, *node.ins):
                storage = view.storage
                if storage.tensor is None and id(storage) not in kept_ids:
                    first = spans[id(storage)][1] if id(storage) in spans else at
                    spans[id(storage)] = (storage, first, at)
        self.offsets: dict[int, int] = {}
        self.bytes = 0
        placed: list[tuple[int, int, int, int]] = []  # offset, end, first node, last node
        for storage, first, last in sorted(spans.values(), key=lambda span: -span[0].bytes):
            offset = 0
            for begin, end, since, until in placed:  # by offset
                if until < first or last < since:
                    continue
                if offset + storage.bytes <= begin:
                    break
                offset = max(offset, end)
            size = -(-storage.bytes // _ALIGNMENT) * _ALIGNMENT
            self.offsets[id(storage)] = offset
            self.bytes = max(self.bytes, offset + size)
            placed.append((offset, offset + size, first, last))
            placed.sort()
