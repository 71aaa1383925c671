"""Ranges of partial derivatives of one output over many boxes at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.canonical import commuted
from lipverify.analyzers.local.comparators import elementary
from lipverify.analyzers.local.coupled import slope_lines
from lipverify.analyzers.local.gradients import (
    Gradients,
    absolute_adjoint,
    derivative_ranges,
    gradient_of,
    reason_to_refuse,
)
from lipverify.analyzers.local.jacobian import Tier, refine
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.memory import share
from lipverify.monotonicity.signs import clip_signs
from lipverify.propagation import bounds
from lipverify.propagation.knowledge import is_affine

MEMORY = 1 << 28
"""Bytes for the gradients of one chunk of boxes."""


@dataclass(frozen=True)
class Partials:
    """lower, upper [boxes, features]: ranges of the partial derivatives; influence [boxes, inputs]: how much the slopes that are
    not known depend on each input, for choosing where to cut."""

    lower: Tensor
    upper: Tensor
    influence: Tensor


class PartialDerivatives:
    """Bounds of the partial derivatives of one output entry.

    Statement: for every x of a box and every Clarke gradient of the output there, entry `feature` lies in its range.
    Source: as `local`; signs as in `monotonicity.signs`.

    Raises:
        UnsupportedModel: an operator without a range of derivatives; the node is named.
    """

    def __init__(self, graph: Graph, entry: int, device: torch.device) -> None:
        self.graph = commuted(graph, None)[0].to(dtype=torch.float64, device=device)
        self.written = elementary(self.graph)
        reason = reason_to_refuse(self.written)
        if reason is not None:
            raise UnsupportedModel(reason)
        self.device = device
        size = self.written.output.size
        seed = torch.zeros(1, size, dtype=torch.float64, device=device)
        seed[0, entry] = 1.0
        self.seeds = seed.reshape(1, *self.written.output_shape)
        self.at_once = max(1, share(MEMORY) // (64 * sum(node.size for node in self.written.nodes)))

    def over(self, box: Interval, features: list[int]) -> Partials:
        """The ranges over boxes [boxes, *input shape]."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(box.lower), self.at_once):
                some = slice(start, start + self.at_once)
                parts.append(self._over(Interval(box.lower[some], box.upper[some]), features))
        return Partials(
            torch.cat([p.lower for p in parts]),
            torch.cat([p.upper for p in parts]),
            torch.cat([p.influence for p in parts]),
        )

    def _over(self, box: Interval, features: list[int]) -> Partials:
        ball = _as_ball(box)
        within = None
        if len(self.written.nodes) != len(self.graph.nodes):
            within = bounds(self.graph, ball, method="interval", device=self.device)
        ranges = bounds(self.written, ball, device=self.device, within=within)
        factors = derivative_ranges(self.written, ranges)
        tier = Tier(lines=slope_lines(self.written, ranges.known), known=ranges.known)
        found = Gradients(self.written, self.seeds, factors)
        for node in reversed(self.written.nodes):
            gradient_of(found, node, len(ball))
            clip_signs(found, node)
            wanted = self._wanted(found, node, features)
            if wanted is not None:
                refine(found, node, wanted, tier)
        entries = found.boxes[self.written.input.name]
        lower, upper = (end.flatten(1)[:, features] for end in (entries.lower, entries.upper))
        return Partials(lower, upper, self._influence(found))

    def _wanted(self, found: Gradients, node: Node, features: list[int]) -> Tensor | None:
        """[boxes, size]: the entries of this gradient worth a functional of their own: those of unknown sign that matter."""
        box = found.boxes[node.name]
        open_sign = ((box.lower < 0) & (box.upper > 0)).any(1).flatten(1)
        if node.name == self.written.input.name:
            asked = torch.zeros_like(open_sign)
            asked[:, features] = True
            return open_sign & asked
        if node.name not in found.factors:
            return None
        free = torch.stack([(f.lower < f.upper).flatten(1) for f in found.factors[node.name]]).any(0)
        return open_sign & free

    def _influence(self, found: Gradients) -> Tensor:
        """Pulls (width of slope) times (size of gradient) back to the input with absolute coefficients: [boxes, inputs]."""
        graph, count = found.graph, len(found.boxes[found.graph.input.name].lower)
        total = {node.name: found.seeds.new_zeros(count, *node.shape) for node in graph.nodes}
        for node in reversed(graph.nodes):
            own = total[node.name]
            if not node.inputs:
                continue
            if is_affine(node):
                shapes = tuple(graph[name].shape for name in node.inputs)
                for name, part in zip(node.inputs, absolute_adjoint(node, own, shapes), strict=True):
                    total[name] = total[name] + part
                continue
            largest = found.largest(node.name)[:, 0]
            for name, factor in zip(node.inputs, found.factors[node.name], strict=True):
                steep = torch.maximum(factor.lower.abs(), factor.upper.abs())
                total[name] = total[name] + steep * own + (factor.upper - factor.lower) * largest
        return total[graph.input.name].flatten(1)


def _as_ball(box: Interval) -> Ball:
    """The boxes as one ball of the largest radius, cut by each box."""
    center = torch.minimum(torch.maximum(box.center, box.lower), box.upper)
    reach = float(torch.maximum(box.upper - center, center - box.lower).max())
    return Ball(center, math.nextafter(reach * (1.0 + 1e-12), math.inf), Norm.LINF, (box.lower, box.upper))
