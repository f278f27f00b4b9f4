"""Which instructions are needed, and where in the arena their memory is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from fastnn.capture.ir import Island, Node, OptimizerStep, Storage

_ALIGNMENT = 64  # bytes: a cache line, and one AVX-512 vector


def without_dead(nodes: Sequence[Node], kept: Collection[Storage]) -> list[Node]:
    """The nodes without those whose results are never read.

    Torch draws random numbers in order, so nodes that draw are kept. `kept` is memory that is read after the
    last node.
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
        placed = np.zeros((4, len(spans)), dtype=np.int64)
        for count, (storage, first, last) in enumerate(sorted(spans.values(), key=lambda s: -s[0].bytes)):
            begins, ends, since, until = placed[:, :count]
            at_once = np.flatnonzero((until >= first) & (since <= last))
            at_once = at_once[begins[at_once].argsort()]
            # First fit: the first gap after the blocks that begin before it in which it ends before the next.
            after = np.append(0, np.maximum.accumulate(ends[at_once]))
            fits = after[:-1] + storage.bytes <= begins[at_once]
            offset = int(after[np.append(fits, True).argmax()])
            size = -(-storage.bytes // _ALIGNMENT) * _ALIGNMENT
            self.offsets[id(storage)] = offset
            self.bytes = max(self.bytes, offset + size)
            placed[:, count] = offset, offset + size, first, last
