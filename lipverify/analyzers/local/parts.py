"""Parts of a ball: inputs for which some values lie on one side of a threshold.

Legend: a split (node, entry, threshold, above) keeps the inputs with value >= threshold (above) or <= threshold.
The two parts of a split cover the ball; of a leaf of splits the ranges are computed again (`propagation.bounds`, `within`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from lipverify import ops
from lipverify.certificates.pending import keepable
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.propagation.knowledge import is_affine
from lipverify.rules import slopes

KINKED = (ops.ReLU, ops.LeakyReLU, ops.PReLU, ops.Abs)
"""Linear on both sides of zero."""
_NEAR_ZERO = 1e-300


@keepable
@dataclass(frozen=True)
class Split:
    """Inputs for which one entry (row-major) of a node's value is on one side of a threshold, or on it."""

    node: str
    entry: int
    threshold: float
    above: bool

    def to_json(self) -> list[str | int | float | bool]:
        return [self.node, self.entry, self.threshold, self.above]


Splits = tuple[Split, ...]


def splittable(graph: Graph) -> list[Node]:
    """The scalar activations, whose arguments can be split."""
    return [node for node in graph.nodes if not is_affine(node) and slopes.covers(type(node.op))]


def threshold(op: object, lower: float, upper: float) -> float | None:
    """Where the argument of an activation is cut in two; None where that changes nothing any more."""
    if isinstance(op, KINKED):
        return 0.0 if lower < 0.0 < upper else None
    middle = lower / 2 + upper / 2
    return middle if lower < middle < upper else None


def within(graph: Graph, leaves: Sequence[Splits], device: torch.device) -> dict[str, Interval]:
    """For each node that is split somewhere the half-lines of every leaf: [leaves, *shape]."""
    names = {split.node for splits in leaves for split in splits}
    found = {}
    for name in names:
        size = graph[name].size
        lower = torch.full((len(leaves), size), -math.inf, dtype=torch.float64)
        upper = torch.full((len(leaves), size), math.inf, dtype=torch.float64)
        for row, splits in enumerate(leaves):
            for split in splits:
                if split.node == name:
                    end, side = (lower, max) if split.above else (upper, min)
                    end[row, split.entry] = side(float(end[row, split.entry]), split.threshold)
        shape = (len(leaves), *graph[name].shape)
        # A threshold passed twice from both sides leaves one value; never an empty pair here.
        crossed = lower > upper
        lower, upper = torch.where(crossed, upper, lower), torch.where(crossed, lower, upper)
        found[name] = Interval(lower.reshape(shape).to(device), upper.reshape(shape).to(device))
    return found


def away_from_kinks(graph: Graph, ranges: dict[str, Interval]) -> dict[str, Interval]:
    """Ranges that end at a kink moved off it, for the derivatives alone.

    Statement: almost everywhere in the ball the derivative of s(z) is slope times the gradient of z for the slope that holds
        on the side of zero that the range lies on.
    Source: where z = 0 the gradient of z is zero almost everywhere (Evans, Gariepy, Measure Theory and Fine Properties of
        Functions, section 4.2), so that any slope may be used there; on z > 0 and on z < 0 the slopes of `KINKED` are
        constant. A Lipschitz constant needs the gradients almost everywhere only.
    """
    moved = dict(ranges)
    for node in graph.nodes:
        if not isinstance(node.op, KINKED):
            continue
        name = node.inputs[0]
        box = ranges[name]
        lower = torch.where(box.lower == 0.0, torch.full_like(box.lower, _NEAR_ZERO), box.lower)
        upper = torch.where(box.upper == 0.0, torch.full_like(box.upper, -_NEAR_ZERO), box.upper)
        both = lower > upper
        upper = torch.where(both, lower, upper)
        if all(isinstance(graph[reader].op, KINKED) for reader in graph.consumers[name]):
            moved[name] = Interval(lower, upper)
    return moved


Twins = dict[tuple[str, int], list[tuple[int, float, Fraction]]]
"""(node, entry) -> other entries: other value = sign * value + difference, exactly."""


def parallel_values(graph: Graph) -> Twins:
    """Entries of one affine layer that are each other's value or its negative, up to a known constant.

    Only for layers given by a matrix. A split of one is a split of all of them; a part in which opposite values disagree
    would be a set without volume, which no rounded bound can tell to be empty.
    """
    found: Twins = {}
    for node in splittable(graph):
        source = graph[node.inputs[0]]
        if not isinstance(source.op, ops.Linear) or len(source.shape) != 1:
            continue
        rows = (source.op.weight.to(torch.float64) + 0.0).tolist()
        bias = [0.0] * len(rows) if source.op.bias is None else source.op.bias.to(torch.float64).tolist()
        members: dict[tuple[float, ...], list[int]] = {}
        for index, row in enumerate(rows):
            members.setdefault(tuple(row), []).append(index)
        for row, same in members.items():
            opposite = members.get(tuple(-value + 0.0 for value in row), [])
            for index in same:
                others = [(other, 1.0) for other in same] + [(other, -1.0) for other in opposite]
                related = [
                    (other, sign, Fraction(bias[other]) - Fraction(sign) * Fraction(bias[index]))
                    for other, sign in others
                    if other != index
                ]
                if related:
                    found[source.name, index] = related
    return found


def children(parent: Splits, split: Split, twins: Twins) -> list[Splits]:
    """Both sides of a split, with what it says about parallel entries."""
    both = []
    for above in (True, False):
        implied = [Split(split.node, split.entry, split.threshold, above)]
        for other, sign, difference in twins.get((split.node, split.entry), []):
            exact = Fraction(sign) * Fraction(split.threshold) + difference
            side = above if sign > 0 else not above
            implied.append(Split(split.node, other, _outward(exact, side), side))
        both.append((*parent, *implied))
    return both


def _outward(value: Fraction, above: bool) -> float:
    """The float64 that is not above (a lower end) or not below (an upper end) the value."""
    near = float(value)
    if above:
        return near if Fraction(near) <= value else math.nextafter(near, -math.inf)
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)
