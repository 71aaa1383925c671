"""Evidence of bounds over balls as steps of a proof (docs/proof-format.md): Jacobians, the smaller of two, trees of parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lipverify.analyzers.lipsdp.canonical import commuted, layers_of_neurons
from lipverify.analyzers.lipsdp.proof import facts_of
from lipverify.analyzers.local.comparators import elementary
from lipverify.analyzers.local.parts import away_from_kinks, splittable, within
from lipverify.certificates.writing import Condition, Layer, Part, Writer
from lipverify.errors import NotCovered, RefutedCertificate
from lipverify.ir.graph import Graph
from lipverify.propagation import bounds

if TYPE_CHECKING:
    from lipverify.analyzers.local.analyzer import JacobianRows
    from lipverify.analyzers.local.bab import Trees
    from lipverify.analyzers.local.forms import FormRows
    from lipverify.analyzers.local.frontier import Leaf

MOST = 4000
"""Leaves of one centre, beyond which checking takes longer than anybody waits."""
RAISED = 0.049
"""How far above the bound of the analyzer a part may be: the bound is raised to it."""
PACE = 3e7
"""Rows times squared numbers in the steps of a program that the checker goes through, twice, in a second."""


def expected(writer: Writer, part: Part) -> tuple[float, str]:
    """Seconds that ranges of derivatives take, twice; and of what, in words."""
    numbers = sum(step.size for step in writer.subject.elements.steps)
    rows = part.rows[1] - part.rows[0]
    return seconds(rows, numbers), f"{rows} rows through {numbers:,} numbers"


def seconds(rows: int, numbers: int) -> float:
    """What the checker takes for ranges of derivatives of a program of so many numbers, twice."""
    return rows * numbers**2 / PACE


def prove_jacobians(
    evidence: JacobianRows | FormRows, writer: Writer, part: Part, least: bool = False
) -> int:
    """Ranges of values and of gradients, which the checker computes itself; the global product where that was smaller.

    least: whether the checker's may be smaller than the bound of the analyzer.
    """
    if evidence.from_product[part.centre]:
        return writer.product(part)
    return writer.jacobian(part, least=least)


def prove_trees(evidence: Trees, writer: Writer, part: Part) -> int:
    """Parts of the ball that cover it, each with a proof of its own; a tree for all outputs, or one for each."""
    leaves = evidence.centres[part.centre]
    if len(leaves) > MOST:
        raise NotCovered(f"a tree of {len(leaves)} parts is too large to check")
    if any(leaf.by == "root" and leaf.upper >= part.upper for leaf in leaves):
        # The bound is that of the whole ball, which has a proof of its own.
        whole: Any = evidence.root
        found: int = whole.proof(writer, part)
        return found
    groups: dict[tuple[int, int], list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault(leaf.outputs, []).append(leaf)
    growing = _Growing(writer, part, layers_of(writer, part))
    facts = [growing.tree(groups[rows], rows) for rows in sorted(groups)]
    return writer.rows(part, facts)


@dataclass
class _Growing:
    """Trees of one centre; their common bound grows by what rounding adds."""

    writer: Writer
    part: Part
    layers: dict[str, tuple[int, int]]

    def tree(self, leaves: Sequence[Leaf], rows: tuple[int, int]) -> int:
        """The constant of some outputs over the ball."""
        return self._inner(list(leaves), 0, replace(self.part, rows=rows), ())

    def _inner(self, leaves: list[Leaf], at: int, part: Part, kept: tuple[int, ...]) -> int:
        """The part after `at` splits of its leaves, of which the ones at `kept` are conditions."""
        settled = next((leaf for leaf in leaves if leaf.depth <= at), None)
        if settled is not None:
            return self._leaf(settled, part, kept)
        first = leaves[0].splits[at]
        sides = {side: [leaf for leaf in leaves if leaf.splits[at].above is side] for side in (True, False)}
        if not (sides[True] and sides[False]):
            # It follows from the split before it: the checker does without.
            return self._inner(leaves, at + 1, part, kept)
        layer, begin = self.layers[first.node]
        above, below = (
            self._inner(
                sides[side],
                at + 1,
                part.within(Condition(layer, begin + first.entry, first.threshold, side)),
                (*kept, at),
            )
            for side in (True, False)
        )
        return self.writer.add("cover", above=above, below=below)

    def _leaf(self, leaf: Leaf, part: Part, kept: tuple[int, ...]) -> int:
        ranges = self.writer.ranges(part)
        if self.writer.is_empty(ranges):
            return ranges
        if leaf.by == "empty" and leaf.weights is not None:
            try:
                return self.writer.empty(part, [leaf.weights[k] for k in kept])
            except RefutedCertificate:
                pass  # the checker's lines are other ones; its ranges may do
        found, upper = None, part.upper * (1.0 + 1e-9)
        try:
            with self.writer.attempt():
                found = self.writer.jacobian(part, part.upper * (1.0 + RAISED))
        except RefutedCertificate as error:
            reason = str(error)
        if found is not None and (leaf.proof is None or self.writer.limit(found) <= upper):
            return found
        if leaf.proof is None:
            raise NotCovered(f"a part by {leaf.by}, whose multipliers were not kept: {reason}")
        try:
            alone = leaf.outputs[1] - leaf.outputs[0] == 1
            proof = replace(leaf.proof, outputs=(leaf.outputs[0],) if alone else None)
            with self.writer.attempt():
                (fact,) = facts_of(proof, self.writer, part, partial(_layers, self.writer, part, leaf))
        except RefutedCertificate as error:
            if found is not None:
                return found
            raise NotCovered(f"a part by {leaf.by} ({error}); by ranges: {reason}") from error
        return fact


def _layers(writer: Writer, part: Part, leaf: Leaf) -> list[Layer]:
    written = elementary(commuted(writer.graph, None)[0]).to(dtype=torch.float64)
    conditions = within(written, [leaf.splits[: leaf.depth]], torch.device("cpu"))
    ranges = bounds(written, writer.ball(part), within=conditions)
    found = layers_of_neurons(written, away_from_kinks(written, dict(ranges)))
    return [Layer(layer.size, *(end.cpu().numpy() for end in layer[1:])) for layer in found]


def layers_of(writer: Writer, part: Part) -> dict[str, tuple[int, int]]:
    """Which layer of the checker reads a value that trees split (-1: the input), and where in it the value begins.

    Raises:
        NotCovered: the layers are others than the checker's.
    """
    written: Graph = elementary(commuted(writer.graph, None)[0])
    found = {written.input.name: (-1, 0)}
    nodes = iter(splittable(written))
    for layer, size in enumerate(writer.layers(part)):
        begin = 0
        while begin < size:
            # What is compared at once in a sort is one layer of the checker.
            node = next(nodes, None)
            if node is None or begin + node.size > size:
                raise NotCovered("the checker arranges the layers of this network in another way")
            found.setdefault(node.inputs[0], (layer, begin))
            begin += node.size
    if next(nodes, None) is not None:
        raise NotCovered("the checker arranges the layers of this network in another way")
    return found
