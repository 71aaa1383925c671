"""Linear bounds of the logit differences with searched lower planes of ReLU: one set of slopes for each difference.

Legend: relu(z) >= a z for every a in [0, 1]; z in [l, u] with l < 0 < u.
Source: Xu et al., ICLR 2021 (arXiv 2011.13824), alpha-CROWN, with the planes of the last backward pass optimised and the ranges
of the neurons kept.
Sound when: as `propagation.bounds`; the search may end anywhere, each value is evaluated again with every rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.protocol import Compute
from lipverify.ir.graph import Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Input
from lipverify.ir.region import Ball
from lipverify.propagation import Bounds
from lipverify.propagation.functionals import Functionals
from lipverify.propagation.knowledge import Knowledge

RATE = 0.25
FADE = 0.93
"""Step of Adam, and its factor after each step."""


@dataclass
class Slopes:
    """Lower slopes of all unstable ReLUs, [rows, *shape] each; kept from one ball to the next, where they start."""

    steps: int = 20
    values: dict[str, Tensor] = field(default_factory=dict)

    def margins(self, ranges: Bounds, compute: Compute) -> Tensor:
        """Lower bounds of all outputs over the one ball of `ranges`, never below those of the ranges: [outputs].

        Stops as soon as all are positive, or at the deadline.
        """
        best = ranges.output.lower.flatten().clone()
        known = ranges.known
        rows = len(best)
        masks = {
            node.name: unstable(known, node) for node in known.graph.nodes if isinstance(node.op, ops.ReLU)
        }
        if not any(bool(mask.any()) for mask in masks.values()):
            return best
        wide = repeated(known, rows)
        for name in masks:
            if name not in self.values:
                start = known.planes(known.graph[name]).lower.slopes[0].clamp(0.0, 1.0)
                self.values[name] = start.expand(rows, *start.shape[1:]).clone()
        parameters = [self.values[name].requires_grad_(True) for name in masks]
        adam = torch.optim.Adam(parameters, lr=RATE)
        with torch.enable_grad():
            for step in range(self.steps):
                walk = self._walk(wide, masks)
                with torch.no_grad():
                    found = -walk.upper()
                    best = torch.where(found > best, found, best)
                if bool((best > 0).all()) or step == self.steps - 1 or compute.remaining() <= 0:
                    break
                objective = rough_upper(walk).sum()
                if not objective.requires_grad:
                    break
                adam.zero_grad()
                objective.backward()
                adam.step()
                for group in adam.param_groups:
                    group["lr"] *= FADE
                with torch.no_grad():
                    for values in parameters:
                        values.nan_to_num_(0.0).clamp_(0.0, 1.0)
        for name in masks:
            self.values[name] = self.values[name].detach()
        return best

    def _walk(self, known: Knowledge, masks: dict[str, Tensor]) -> Functionals:
        """Minus each output as a functional of the input."""
        fresh = replace(known, _planes=dict(known._planes), _sizes={}, _shifts=known._shifts)
        for name, mask in masks.items():
            plain = known.planes(known.graph[name])
            slope = torch.where(mask, self.values[name], plain.lower.slopes[0])
            offset = torch.where(mask, torch.zeros_like(slope), plain.lower.offset)
            lower = replace(plain.lower, slopes=(slope,), offset=offset)
            fresh._planes[name] = replace(plain, lower=lower)
        output = known.graph.output
        rows = output.size
        start = -torch.eye(rows, dtype=torch.float64, device=known.box.lower.device).reshape(
            rows, *output.shape
        )
        walk = Functionals.start(fresh, {output.name: start}, torch.arange(rows, device=start.device))
        for node in reversed(known.graph.nodes):
            if not isinstance(node.op, Input):
                walk.step(node)
        return walk


def unstable(known: Knowledge, node: Node) -> Tensor:
    """Neurons of a ReLU whose argument may have both signs: [count, *shape]."""
    box = known.ranges[node.inputs[0]]
    return (box.lower < 0) & (box.upper > 0)


def repeated(known: Knowledge, rows: int) -> Knowledge:
    """The same ball once for each row, so that each row has planes of its own."""

    def wide(tensor: Tensor) -> Tensor:
        return tensor.expand(rows, *tensor.shape[1:])

    ball = known.ball
    many = Ball(wide(ball.center), ball.radius, ball.norm, ball.box)
    ranges = {name: Interval(wide(box.lower), wide(box.upper)) for name, box in known.ranges.items()}
    return Knowledge(known.graph, many, Interval(wide(known.box.lower), wide(known.box.upper)), ranges)


def rough_upper(walk: Functionals) -> Tensor:
    """What the search lowers: the upper bounds without their rounding. [rows]"""
    known, total = walk.known, walk.constant
    a = walk.coefficients.get(known.graph.input.name)
    if a is None:
        return total
    if known.ball.norm is Norm.L2:
        length: Tensor = torch.linalg.vector_norm(a.flatten(1), dim=1)
        total = total + (a * known.ball.center.to(a)).flatten(1).sum(1)
        return total + known.ball.radius * length
    middle = known.box.lower / 2 + known.box.upper / 2
    return total + (a * middle + a.abs() * (known.box.upper - middle)).flatten(1).sum(1)
