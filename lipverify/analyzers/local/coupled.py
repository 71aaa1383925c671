"""Slopes of smooth activations as what they are: functions of the values in front of them.

A product s(z) g with s in [a, b] and g in [l, u] lies below both McCormick planes a g + u s - a u and b g + l s - b l
(their average is used), in which s is replaced by lines around s(z) on the range of z. The terms in z are then a functional of
the network's values, pushed back to the input: slopes of neighbouring neurons can no longer be extreme independently.
Source: McCormick, Mathematical Programming 10 (1976); Shi et al., NeurIPS 2022 (arXiv 2210.07394).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.local.walk import Walk
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.op import Input, Op, Shape
from lipverify.linalg.rounding import gamma
from lipverify.ops.planes import slope_planes
from lipverify.propagation.functionals import Functionals
from lipverify.propagation.knowledge import Knowledge, is_affine
from lipverify.rules import Plane, Relaxation, slopes

TOGETHER = 1 << 14
"""Numbers of nodes that are looked at together, where one is not more."""
_STEPS = (ops.ReLU, ops.LeakyReLU, ops.PReLU, ops.Abs, ops.Clip, ops.Hardsigmoid)
"""Their slopes jump: a line around them gains nothing over their range."""


def slope_lines(graph: Graph, known: Knowledge) -> dict[str, Relaxation]:
    """Lines around the derivative of every smooth activation, over the range of what it reads."""
    alike: dict[tuple[Op, Shape], list[Node]] = {}
    for node in graph.nodes:
        if not (isinstance(node.op, _STEPS) or is_affine(node)) and slopes.covers(type(node.op)):
            alike.setdefault((node.op, node.shape), []).append(node)
    found = {}
    for nodes in alike.values():
        # Several small ones are one large one, in the time of one.
        at_once = max(1, TOGETHER // (known.count * nodes[0].size))
        for some in (nodes[k : k + at_once] for k in range(0, len(nodes), at_once)):
            found.update(_lines(some, known))
    return found


def _lines(nodes: Sequence[Node], known: Knowledge) -> dict[str, Relaxation]:
    """Of nodes with one operator and shape; those whose slopes are not bounded are left out."""
    boxes = [known.ranges[node.inputs[0]] for node in nodes]
    try:
        around = slope_planes(
            nodes[0].op,
            Interval(*(torch.cat(e) for e in zip(*((b.lower, b.upper) for b in boxes), strict=True))),
        )
    except UnsupportedModel:
        return {} if len(nodes) == 1 else {k: v for node in nodes for k, v in _lines([node], known).items()}
    (slope,), above, below = around.upper.slopes, around.upper.offset, around.lower.offset
    parts = (part.split(known.count) for part in (slope, above, below))
    return {
        node.name: Relaxation(Plane((k,), low), Plane((k,), high))
        for node, k, high, low in zip(nodes, *parts, strict=True)
    }


@dataclass
class CoupledWalk(Walk):
    """As `Walk`; products with smooth slopes leave terms in the network's values, which the balls bound."""

    lines: dict[str, Relaxation] = field(default_factory=dict)
    known: Knowledge | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.values: dict[str, Tensor] = {}

    def upper(self) -> Tensor:
        """Upper bound of every row for every output functional: [rows, output rows]."""
        total = super().upper()
        if not self.values:
            return total
        rows, columns = total.shape
        assert self.known is not None
        flat = {name: a.reshape(rows * columns, *a.shape[2:]) for name, a in self.values.items()}
        back = Functionals.start(self.known, flat, self.owner.repeat_interleave(columns))
        back.constant = total.flatten()
        for node in reversed(self.known.graph.nodes):
            if not isinstance(node.op, Input):
                back.step(node)
        return back.upper().reshape(rows, columns)

    def _product(self, node: Node, inputs: list[Tensor | None]) -> Tensor:
        line, a = self.lines.get(node.name), inputs[0]
        if line is None or a is None:
            return super()._product(node, inputs)
        factor, box = self.gradients.factors[node.name][0], self.gradients.boxes[node.name]
        low, high = (self._rows(end.unsqueeze(1)) for end in (factor.lower, factor.upper))
        lower, upper = self._rows(box.lower), self._rows(box.upper)
        # |A| s g' with g' = g or -g, in [first, last].
        sign = torch.where(a >= 0, 1.0, -1.0).to(a)
        first, last = torch.where(a >= 0, lower, -upper), torch.where(a >= 0, upper, -lower)
        k = self._rows(line.upper.slopes[0].unsqueeze(1))
        above, below = (self._rows(plane.offset.unsqueeze(1)) for plane in (line.upper, line.lower))
        half = 0.5 * a.abs()
        # The lines are parallel: only their offsets depend on the sign of the factor.
        self._collect(node.inputs[0], half * (last + first) * k)
        offset = last * (torch.where(last >= 0, above, below) - low)
        offset = offset + first * (torch.where(first >= 0, above, below) - high)
        self.constant = self.constant + (half * offset).flatten(2).sum(2)
        self._charge(self._rounding(node, a, low, high, line))
        return sign * half * (low + high)

    def _collect(self, name: str, more: Tensor) -> None:
        have = self.values.get(name)
        self.values[name] = more if have is None else have + more

    def _rounding(self, node: Node, a: Tensor, low: Tensor, high: Tensor, line: Relaxation) -> Tensor:
        """gamma times the absolute terms of both planes: |g| (|s| + |k z| + |offset|), and 8 for the additions above."""
        assert self.known is not None
        terms = line.upper.slopes[0].abs() * self.known.largest(node.inputs[0])
        terms = terms + torch.maximum(line.upper.offset.abs(), line.lower.offset.abs())
        size = self._rows(terms.unsqueeze(1)) + low.abs() + high.abs()
        weight = a.abs() * size * self._rows(self.gradients.largest(node.name))
        return 4.0 * gamma(node.size + 16 + 4 * len(self.values)) * weight.flatten(2).sum(2)
