"""Intervals of the gradients of every node, from the output back to the input.

Legend: g_n [count, rows, *shape of n]: the gradient of output functional `row` with respect to the value of node n, for any
choice of Clarke slopes in their ranges over the ball; b the centre, k the row.
Source: Hein, Andriushchenko, NeurIPS 2017 and Weng et al., ICML 2018 (Fast-Lip) for intervals of backward passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import InternalError
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.op import Constant, Input, Op, Shape
from lipverify.linalg.rounding import gamma
from lipverify.ops.enclosure import Enclosure, rounded
from lipverify.ops.planes import chord
from lipverify.propagation.adjoint import adjoint
from lipverify.propagation.knowledge import is_affine
from lipverify.propagation.precision import DOUBLE, Precision
from lipverify.propagation.selections import by_ranges, selects, weights
from lipverify.rules import magnitude, naming, slopes

_TINY = torch.finfo(torch.float64).tiny


Chord = tuple[Tensor, Tensor, Tensor]
"""middle, half, rest: a s g <= (a middle + |a| half) g + |a| rest for a slope and a gradient in their ranges. Of a maximum, whose
terms have the gradients p_i g with p_i of sum 1: sum a_i p_i g <= (p middle + q half) g + (p - q) rest, p and q the largest and
the smallest a_i."""


@dataclass
class Gradients:
    """Ranges of the gradients over the balls, and how large their terms are.

    factors: node -> for each of its inputs the range [count, *shape] of its derivative; sizes: node -> sum of the absolute
    terms of its gradient [count, rows, *shape], what rounding is charged against.
    """

    graph: Graph
    seeds: Tensor
    """Output functionals [rows, *output shape]."""
    factors: dict[str, tuple[Interval, ...]]
    boxes: dict[str, Interval] = field(default_factory=dict)
    sizes: dict[str, Tensor] = field(default_factory=dict)
    precision: Precision = DOUBLE
    """Of the coefficients of functionals of gradients."""
    _narrow: dict[str, Op] = field(default_factory=dict)
    _chords: dict[tuple[str, torch.dtype], tuple[Interval, list[Chord]]] = field(default_factory=dict)

    def op(self, node: Node) -> Op:
        """The node's operator with its parameters in the type of the coefficients, rounded once."""
        return self.precision.operator(node, self._narrow)

    def chords(self, node: Node) -> list[Chord]:
        """For each input of a node that is not affine its products with the gradient's range; computed once for a range."""
        key, box = (node.name, self.precision.dtype), self.boxes[node.name]
        have = self._chords.get(key)
        if have is None or have[0] is not box:
            t, w = chord(box.lower, box.upper)
            if selects(node):
                have = box, [(self.precision.narrowed(t), self.precision.narrowed(1.0 - t), w)]
            else:
                have = box, [self._chord(factor, t, w) for factor in self.factors[node.name]]
            self._chords[key] = have
        return have[1]

    def _chord(self, factor: Interval, t: Tensor, w: Tensor) -> Chord:
        low, high = factor.lower.unsqueeze(1), factor.upper.unsqueeze(1)
        # For a >= 0 the larger slope is p's, for a < 0 it is q's; p - q = |a| (high - low).
        rising, falling = high * t + low * (1.0 - t), low * t + high * (1.0 - t)
        middle, half = (rising + falling) / 2, (rising - falling) / 2
        return self.precision.narrowed(middle), self.precision.narrowed(half), (high - low) * w

    @property
    def rows(self) -> int:
        return len(self.seeds)

    def largest(self, name: str) -> Tensor:
        """Upper bound of the absolute values of a gradient: [count, rows, *shape]."""
        box = self.boxes[name]
        return torch.maximum(box.lower.abs(), box.upper.abs())


def reason_to_refuse(graph: Graph) -> str | None:
    """Names the nodes whose derivatives have no rule here."""
    missing = [node.describe() for node in graph.nodes if not _differentiable(node)]
    return f"no range of derivatives for {', '.join(missing[:3])}" if missing else None


def _differentiable(node: Node) -> bool:
    op = node.op
    known = isinstance(op, Input | Constant | ops.Mul | ops.Div) or selects(node) or is_affine(node)
    return known or slopes.covers(type(op))


def derivative_ranges(
    graph: Graph, ranges: Mapping[str, Interval], possible: Mapping[str, Tensor] | None = None
) -> dict[str, tuple[Interval, ...]]:
    """For each node that is not affine the range of its derivative in each input, over the ranges of its inputs.

    Args:
        possible: which terms of maxima count, where that is known better than from the ranges.

    Raises:
        UnsupportedModel: a derivative is not bounded there; the node is named.
    """
    found: dict[str, tuple[Interval, ...]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Input | Constant) or is_affine(node):
            continue
        boxes = [ranges[name] for name in node.inputs]
        with naming(node):
            if selects(node):
                terms = (possible or {}).get(node.name)
                found[node.name] = weights(by_ranges(graph, node, boxes) if terms is None else terms)
            else:
                found[node.name] = tuple(_derivatives(node, boxes))
    return found


def _derivatives(node: Node, boxes: list[Interval]) -> list[Interval]:
    if isinstance(node.op, ops.Mul):
        return [boxes[1], boxes[0]]
    if isinstance(node.op, ops.Div):
        over = 1.0 / Enclosure.of(boxes[1])
        return [over, -(Enclosure.of(boxes[0]) * over.square())]
    found = slopes(node.op, boxes[0], node.shape)
    size = boxes[0].lower.shape
    return [Interval(found.lower.expand(size), found.upper.expand(size))]


def interval_gradients(
    graph: Graph, factors: dict[str, tuple[Interval, ...]], seeds: Tensor, count: int
) -> Gradients:
    """All gradients by interval arithmetic. seeds [rows, *output shape], exact."""
    found = Gradients(graph, seeds, factors)
    for node in reversed(graph.nodes):
        gradient_of(found, node, count)
    return found


def gradient_of(found: Gradients, node: Node, count: int) -> None:
    """The interval of one node's gradient from those of its readers, which must be there."""
    size = (count, found.rows, *node.shape)
    zero = found.seeds.new_zeros(1).expand(size)
    total, terms = Enclosure(zero, zero), zero
    if node.name == found.graph.output.name:
        seed = found.seeds.expand(size)
        total, terms = Enclosure(seed, seed), seed.abs()
    for name in dict.fromkeys(found.graph.consumers[node.name]):
        reader = found.graph[name]
        for place, source in enumerate(reader.inputs):
            if source == node.name:
                part, largest = contribution(found, reader, place)
                total, terms = (part, largest) if terms is zero else (total + part, terms + largest)
    if not total.lower.shape == terms.shape == size:
        raise InternalError(
            f"the gradient of {node.describe()} has a range of shape {list(total.lower.shape)}"
        )
    found.boxes[node.name], found.sizes[node.name] = Interval(total.lower, total.upper), terms


def contribution(found: Gradients, reader: Node, place: int) -> tuple[Enclosure, Tensor]:
    """What one reader adds to the gradient of its input `place`, and the sum of the absolute terms."""
    box = found.boxes[reader.name]
    if is_affine(reader):
        return _affine_contribution(found, reader, box, place)
    factor = found.factors[reader.name][place]
    s = Enclosure(factor.lower.unsqueeze(1), factor.upper.unsqueeze(1))
    product = s * Enclosure.of(box)
    return product, 2.0 * torch.maximum(s.lower.abs(), s.upper.abs()) * found.largest(reader.name)


def _affine_contribution(
    found: Gradients, reader: Node, box: Interval, place: int
) -> tuple[Enclosure, Tensor]:
    """A' g over a box: A' centre +- |A|' radius."""
    shapes = tuple(found.graph[name].shape for name in reader.inputs)
    lead = box.lower.shape[:2]
    center = box.lower / 2 + box.upper / 2
    radius = torch.maximum(box.upper - center, center - box.lower)
    radius = torch.nextafter(radius, torch.full_like(radius, torch.inf)).masked_fill(
        box.upper == box.lower, 0.0
    )
    rows = torch.cat([radius.flatten(0, 1), center.abs().flatten(0, 1)])
    middle = adjoint(reader.op, center.flatten(0, 1), shapes)[place]
    spread, size = absolute_adjoint(reader, rows, shapes)[place].chunk(2)
    # Computed sums of n terms are off by gamma_n times these; twice for their own rounding.
    error = spread + 4.0 * gamma(reader.size + 16) * (size + spread) + _TINY
    unknown = (size + spread) > 0  # a gradient that no path reaches is exactly zero
    error = torch.where(unknown, error, torch.zeros_like(error))
    part = rounded(middle - error, middle + error)
    zero = torch.zeros_like(middle)
    part = Enclosure(torch.where(unknown, part.lower, zero), torch.where(unknown, part.upper, zero))
    shape = (*lead, *shapes[place])
    largest = (size + spread).reshape(shape)
    return Enclosure(part.lower.reshape(shape), part.upper.reshape(shape)), largest


def absolute_adjoint(node: Node, rows: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
    """|A|' g for g >= 0."""
    op = node.op
    if isinstance(op, ops.Linear | ops.Conv):
        return adjoint(replace(op, weight=op.weight.abs(), bias=None), rows, shapes)
    if isinstance(op, ops.Add | ops.Sub):
        return rows, rows
    inputs = [rows.new_zeros(len(rows), *shape).requires_grad_() for shape in shapes]
    with torch.enable_grad():
        total = (magnitude(op, *inputs) * rows).sum()
    return torch.autograd.grad(total, inputs, materialize_grads=True)
