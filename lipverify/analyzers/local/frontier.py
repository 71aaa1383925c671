"""The leaves of a tree of parts: those that can still be split, the largest bound first, and those done with."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lipverify.analyzers.lipsdp.evidence import Proof
from lipverify.analyzers.local.parts import Split, Splits
from lipverify.certificates.pending import keepable

Group = tuple[int, int]
"""First and last + 1 of the output rows that a tree is for."""
_Heap = list[tuple[float, int, "Leaf"]]


@keepable
@dataclass(frozen=True)
class Leaf:
    """A part of the ball and what is proved there for some output rows.

    by: `empty`, `chord`, `sdp` or `root`, the method of the bound; depth: how many of the splits it used; weights: of the
    splits, for a part proved empty by a combination of them.
    """

    splits: Splits
    outputs: tuple[int, int]
    upper: float
    by: str
    depth: int
    next: Split | None = None
    weights: tuple[float, ...] | None = None
    proof: Proof | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "rows": list(range(*self.outputs)),
            "splits": [split.to_json() for split in self.splits],
            "upper": self.upper,
            "by": self.by,
            "depth": self.depth,
        }
        if self.weights is not None:
            found["weights"] = list(self.weights)
        if self.proof is not None:
            found["multipliers"] = self.proof.to_json()
        return found


@dataclass(frozen=True)
class _Leaves:
    open: Mapping[Group, _Heap] = field(default_factory=dict)
    closed: tuple[Leaf, ...] = ()
    highest_closed: float = 0.0


class Frontier:
    """The leaves of one ball; together they cover it at every moment.

    They change by one assignment: an interrupt finds the leaves before a step or those after it, never a part of them.
    """

    def __init__(self, roots: Sequence[Leaf]) -> None:
        self._order = itertools.count()
        self._now = _Leaves(open={leaf.outputs: [self._entry(leaf)] for leaf in roots})

    @property
    def upper(self) -> float:
        """The bound that all leaves together prove."""
        now = self._now
        return max([now.highest_closed, *(-heap[0][0] for heap in now.open.values() if heap)])

    def leaves(self) -> list[Leaf]:
        """All leaves: those done with, and those still open."""
        now = self._now
        return [*now.closed, *(leaf for heap in now.open.values() for _, _, leaf in heap)]

    def worst(self, count: int) -> list[Leaf]:
        """At most so many open leaves of the group with the largest bound; none where no split would lower the bound."""
        now = self._now
        heaps = [heap for heap in now.open.values() if heap]
        if not heaps:
            return []
        heap = min(heaps, key=lambda h: h[0][0])
        if -heap[0][0] <= now.highest_closed * (1.0 + 1e-12):
            return []
        return [leaf for value, _, leaf in heapq.nsmallest(count, heap) if -value > now.highest_closed]

    def exchange(self, old: Sequence[Leaf], new: Sequence[Leaf]) -> None:
        """Puts leaves that cover the same part in the place of open ones. A leaf without a next split is done with."""
        now = self._now
        gone = {id(leaf) for leaf in old}
        groups = {leaf.outputs for leaf in old}
        heaps = {
            group: [entry for entry in heap if id(entry[2]) not in gone] if group in groups else heap
            for group, heap in now.open.items()
        }
        done = [leaf for leaf in new if leaf.next is None]
        for leaf in new:
            if leaf.next is not None:
                heaps[leaf.outputs].append(self._entry(leaf))
        for group in groups:
            heapq.heapify(heaps[group])
        highest = max([now.highest_closed, *(leaf.upper for leaf in done)])
        self._now = _Leaves(heaps, (*now.closed, *done), highest)

    def _entry(self, leaf: Leaf) -> tuple[float, int, Leaf]:
        return -leaf.upper, next(self._order), leaf
