"""Which nodes of a list read and write a storage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from fastnn.capture.ir import Node, Storage, View


class Accesses:
    """Which positions in a list of nodes read and write each storage; nodes can be replaced or removed."""

    def __init__(self, nodes: Sequence[Node], kept: Collection[Storage]) -> None:
        self.nodes: list[Node | None] = list(nodes)
        self._kept = {id(storage) for storage in kept}
        self._reads: defaultdict[int, set[int]] = defaultdict(set)
        self._writes: defaultdict[int, set[int]] = defaultdict(set)
        for place in range(len(self.nodes)):
            self._note(place)

    def _note(self, place: int) -> None:
        node = self.nodes[place]
        if node is not None:
            for view in node.ins:
                self._reads[id(view.storage)].add(place)
            for view in node.outs:
                self._writes[id(view.storage)].add(place)

    def replace(self, place: int, node: Node | None) -> None:
        """Replace the node there, or remove it."""
        before = self.nodes[place]
        if before is not None:
            for view in before.ins:
                self._reads[id(view.storage)].discard(place)
            for view in before.outs:
                self._writes[id(view.storage)].discard(place)
        self.nodes[place] = node
        self._note(place)

    def next_access(self, storage: Storage, place: int) -> int | None:
        """The first position after `place` that reads or writes the storage."""
        later = (p for p in self._reads[id(storage)] | self._writes[id(storage)] if p > place)
        return min(later, default=None)

    def readers(self, storage: Storage) -> set[int]:
        """The positions of the nodes that read it."""
        return self._reads[id(storage)]

    def written_between(self, views: Iterable[View], first: int, last: int) -> bool:
        """Whether a node after `first` and before `last` writes a storage of the views."""
        return any(first < p < last for view in views for p in self._writes[id(view.storage)])

    def touched_between(self, view: View, first: int, last: int) -> bool:
        """Whether a node after `first` and before `last` reads or writes the storage of the view."""
        storage = id(view.storage)
        return any(first < p < last for p in self._reads[storage] | self._writes[storage])

    def is_dropped(self, storage: Storage, readers: set[int]) -> bool:
        """Whether only the nodes at `readers` read what the storage holds."""
        return (
            storage.tensor is None and id(storage) not in self._kept and self._reads[id(storage)] <= readers
        )

    def remaining(self) -> list[Node]:
        """The nodes that are left, in order."""
        return [node for node in self.nodes if node is not None]
