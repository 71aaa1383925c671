"""Trees of parts of a ball in the checker's form: splits inside, a proof at every leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lipverify.analyzers.lipsdp.canonical import commuted
from lipverify.analyzers.local.comparators import elementary
from lipverify.analyzers.local.frontier import Leaf
from lipverify.analyzers.local.parts import splittable
from lipverify.checkers import NotCovered
from lipverify.checkers.balls import Empty, Split, prove_empty
from lipverify.checkers.jacobians import prove_local
from lipverify.checkers.multipliers import System
from lipverify.errors import RefutedCertificate
from lipverify.ir.graph import Graph

Node = dict[str, Any]
Make = Callable[[Sequence[Split]], System]
MOST = 4000
"""Leaves of one centre, beyond which checking takes longer than anybody waits."""


@dataclass
class Growing:
    """Trees of one centre. make: the checker's system of a part; other: a proof where ranges alone do not reach the bound."""

    make: Make
    norms: tuple[str, str]
    other: Callable[[Leaf, System, float], Node]
    layers: dict[str, int]
    upper: float

    def trees(self, leaves: Sequence[Leaf]) -> Node:
        """A proof for all outputs; `upper` grows by what rounding adds."""
        if len(leaves) > MOST:
            raise NotCovered(f"a tree of {len(leaves)} parts is too large to check")
        groups: dict[tuple[int, int], list[Leaf]] = {}
        for leaf in leaves:
            groups.setdefault(leaf.outputs, []).append(leaf)
        found = [{"rows": list(rows), "root": self._part(groups[rows], 0, (), ())} for rows in sorted(groups)]
        return {"kind": "tree", "groups": found}

    def _part(self, leaves: list[Leaf], at: int, path: tuple[Split, ...], kept: tuple[int, ...]) -> Node:
        """The tree of a part after `at` splits of its leaves, of which the ones at `kept` are branches and make the path."""
        settled = next((leaf for leaf in leaves if leaf.depth <= at), None)
        if settled is not None:
            return self._leaf(settled, path, kept)
        first = leaves[0].splits[at]
        sides = {side: [leaf for leaf in leaves if leaf.splits[at].above is side] for side in (True, False)}
        if not (sides[True] and sides[False]):
            # It follows from the split before it: the checker does without.
            return self._part(leaves, at + 1, path, kept)
        layer = self.layers[first.node]
        inner = {
            name: self._part(
                sides[side],
                at + 1,
                (*path, Split(layer, first.entry, first.threshold, side)),
                (*kept, at),
            )
            for name, side in (("above", True), ("below", False))
        }
        return {"split": [layer, first.entry, first.threshold.hex()], **inner}

    def _leaf(self, leaf: Leaf, path: tuple[Split, ...], kept: tuple[int, ...]) -> Node:
        try:
            system = self.make(path)
        except Empty:
            return {"kind": "local"}
        if leaf.by == "empty" and leaf.weights is not None:
            weights = [leaf.weights[k] for k in kept]
            if prove_empty(system, weights):
                return {"kind": "empty", "weights": [w.hex() for w in weights]}
        try:
            proved = prove_local(system, self.norms, range(*leaf.outputs))
        except Empty:
            return {"kind": "local"}
        if proved <= self.upper * (1 + 1e-9):
            self.upper = max(self.upper, proved)
            return {"kind": "local"}
        try:
            return self.other(leaf, system, self.upper)
        except RefutedCertificate as error:
            reason = f"a part by {leaf.by} ({error}); ranges alone prove {proved:.6g}"
            raise NotCovered(reason) from error


def layers_of(graph: Graph, sizes: Sequence[int]) -> dict[str, int]:
    """Which layer of the checker reads a value that trees split; -1 for the input.

    Raises:
        NotCovered: the layers are others than the checker's.
    """
    written = elementary(commuted(graph, None)[0])
    nodes = splittable(written)
    if [node.size for node in nodes] != list(sizes):
        raise NotCovered("the checker arranges the layers of this network in another way")
    found = {written.input.name: -1}
    for layer, node in enumerate(nodes):
        found.setdefault(node.inputs[0], layer)
    return found
