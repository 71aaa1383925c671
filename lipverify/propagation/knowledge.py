"""What is known about every node over the balls: its range, the affine functions around it, and how large its terms are."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.op import Constant, Input, Op, Shape
from lipverify.ir.region import Ball
from lipverify.ops import Minimum
from lipverify.ops.planes import constant_planes
from lipverify.propagation.interval import blended, image, refuse_without_intervals
from lipverify.propagation.precision import DOUBLE, UNDERFLOW, Precision
from lipverify.propagation.strips import Strip
from lipverify.rules import Relaxation, forward, linear, magnitude, relax

ON_PROCESSORS, ELSEWHERE = 64 << 20, 512 << 20


def chunk_memory(device: torch.device) -> int:
    """Bytes that the coefficients of one chunk of rows may take, where nobody says otherwise.

    On processors few enough for freed tensors to be used again: each one of more than 32 MiB is new memory from the system.
    """
    return ON_PROCESSORS if device.type == "cpu" else ELSEWHERE


@dataclass
class Knowledge:
    """Facts about the nodes of a float64 graph over a ball; ranges grow node by node in topological order.

    Everything is [count of centres, *shape]. A node without a range is not known yet.
    """

    graph: Graph
    ball: Ball
    box: Interval
    """The balls' boxes, on the device of the graph."""
    ranges: dict[str, Interval] = field(default_factory=dict)
    strips: dict[str, Strip] = field(default_factory=dict)
    """Of nodes that mix entries: used instead of their planes."""
    possible: dict[str, Tensor] = field(default_factory=dict)
    """Of maxima and minima: which terms can be the largest or smallest, [terms, count, *shape] (`selections`)."""
    _planes: dict[str, Relaxation] = field(default_factory=dict)
    _sizes: dict[str, Tensor] = field(default_factory=dict)
    _shifts: dict[str, Tensor] = field(default_factory=dict)
    cut: bool = False
    """Whether `box` may be smaller than the balls' own boxes."""
    empty: Tensor | None = None
    """[count]: parts of balls that were found to hold no input at all; None where parts were not asked for."""
    precision: Precision = DOUBLE
    """Of coefficients; facts are float64."""
    _narrow: dict[str, Op] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, ball: Ball, device: torch.device, precision: Precision = DOUBLE) -> Knowledge:
        """Nothing known yet but the input's box.

        Raises:
            UnsupportedModel: a node without an interval rule; it is named.
        """
        refuse_without_intervals(graph)
        box = ball.enclosure()
        ends = Interval(box.lower.to(device), box.upper.to(device))
        exact = graph.to(dtype=torch.float64, device=device)
        return cls(exact, ball, ends, cut=ball.box is not None, precision=precision)

    def op(self, node: Node) -> Op:
        """The node's operator with its parameters in the type of the coefficients, rounded once."""
        return self.precision.operator(node, self._narrow)

    def meet(self, first: Interval, second: Interval) -> Interval:
        """The intersection. Where it is empty the centre is noted in `empty`, and `first` stands for it: every range of
        such a centre holds all of its (no) values.

        Raises:
            InternalError: an empty intersection although no parts of balls were asked for.
        """
        lower, upper = torch.maximum(first.lower, second.lower), torch.minimum(first.upper, second.upper)
        if self.empty is None:
            return Interval(lower, upper)
        apart = (lower > upper).flatten(1).any(1)
        if bool(apart.any()):
            self.empty |= apart
            rows = apart.reshape(-1, *[1] * (lower.ndim - 1))
            lower, upper = torch.where(rows, first.lower, lower), torch.where(rows, first.upper, upper)
        return Interval(lower, upper)

    @property
    def count(self) -> int:
        """How many centres."""
        return len(self.ball)

    def shapes(self, node: Node) -> tuple[Shape, ...]:
        """Sample shapes of a node's inputs."""
        return tuple(self.graph[name].shape for name in node.inputs)

    def image(self, node: Node) -> Interval:
        """The node's box from the ranges of its inputs, by its interval rule and as a blend: [count, *shape].

        Raises:
            UnsupportedModel: the operator is not bounded on these ranges; the node is named.
        """
        if isinstance(node.op, Input):
            return self.box
        found = image(node, [self.ranges[name] for name in node.inputs], self.count)
        between = blended(self.graph, node, self.ranges)
        return found if between is None else self.meet(found, between)

    def largest(self, name: str) -> Tensor:
        """Upper bound of the absolute values of a node."""
        box = self.ranges[name]
        return torch.maximum(box.lower.abs(), box.upper.abs())

    def planes(self, node: Node) -> Relaxation:
        """Affine functions around a node that is not affine; its range where there is no `relax` rule or no finite plane."""
        if node.name not in self._planes:
            box, found = self.ranges[node.name], None
            if relax.covers(type(node.op)):
                try:
                    found = relax(node.op, *self._terms_of(node))
                except UnsupportedModel:
                    found = None
            if found is None or not _finite(found):
                found = constant_planes(box)
            self._planes[node.name] = found
        return self._planes[node.name]

    def _terms_of(self, node: Node) -> list[Interval]:
        """Ranges of the inputs; terms that never count lie strictly behind all others, so that planes have no slope in them."""
        boxes, possible = [self.ranges[name] for name in node.inputs], self.possible.get(node.name)
        if possible is None:
            return boxes
        sign = -1.0 if isinstance(node.op, Minimum) else 1.0
        ends = torch.stack([sign * (box.upper if sign < 0 else box.lower) for box in boxes])
        least = ends.masked_fill(~possible, -torch.inf).amax(0)
        behind = sign * (least - 2.0**-20 * least.abs() - 2.0**-200)
        return [
            Interval(torch.where(p, box.lower, behind), torch.where(p, box.upper, behind))
            for p, box in zip(possible, boxes, strict=True)
        ]

    def shift(self, node: Node) -> Tensor:
        """The constant part of an affine node, [1, *shape]; computed with the rounding that `sizes` covers."""
        if node.name not in self._shifts:
            zeros = [self.box.lower.new_zeros(1, *shape) for shape in self.shapes(node)]
            self._shifts[node.name] = forward(node.op, *zeros)
        return self._shifts[node.name]

    def sizes(self, node: Node) -> Tensor:
        """Sum of the absolute values of all terms of a node's affine form (or of either of its planes), [count, *shape].

        What one rounding of every coefficient can change the node by, relative to the unit roundoff.
        """
        if node.name not in self._sizes:
            self._sizes[node.name] = self._terms(node)
        return self._sizes[node.name]

    def smallest(self, node: Node) -> Tensor:
        """What coefficients below the smallest normal float32 could change at most, [count]: far below every rounding."""
        total = torch.ones(self.count, dtype=torch.float64, device=self.box.lower.device)
        for name in node.inputs:
            total = total + self.largest(name).flatten(1).sum(1)
        return UNDERFLOW * total

    def _terms(self, node: Node) -> Tensor:
        if isinstance(node.op, Input | Constant):
            return self.largest(node.name)
        if is_affine(node):
            found = magnitude(node.op, *(self.largest(name) for name in node.inputs))
            return found.expand(self.count, *node.shape)
        if node.name in self.strips:
            strip = self.strips[node.name]
            size = strip.absolute(*(self.largest(name) for name in node.inputs), *strip.facts)
            # Sums of absolute values are rounded too, and coefficients are sums of sums.
            return 4.0 * (size + strip.offset.abs() + strip.half)
        around = self.planes(node)
        if around.entries is None:
            terms = [self.largest(name) for name in node.inputs]
        else:
            terms = list(self.largest(node.inputs[0]).flatten(1)[:, around.entries].unbind(1))
        total = torch.maximum(around.lower.offset.abs(), around.upper.offset.abs())
        for plane in (around.lower, around.upper):
            for slope, term in zip(plane.slopes, terms, strict=False):
                total = total + slope.abs() * term
        return total.expand(self.count, *node.shape)


def is_affine(node: Node) -> bool:
    """Whether linear bounds pass through the node exactly. Operators without a `magnitude` rule count as any other."""
    return linear.covers(type(node.op)) and magnitude.covers(type(node.op))


def _finite(found: Relaxation) -> bool:
    tensors = (found.lower.offset, found.upper.offset, *found.lower.slopes, *found.upper.slopes)
    return all(bool(t.isfinite().all()) for t in tensors)
