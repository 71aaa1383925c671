"""One look at a ball: linear bounds of all logit differences, and constants of the differences over it from the same ranges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.local.comparators import elementary
from lipverify.analyzers.local.coupled import slope_lines
from lipverify.analyzers.local.gradients import derivative_ranges
from lipverify.analyzers.local.jacobian import Tier, jacobian_ranges, row_norms
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.op import Input
from lipverify.ir.region import Ball, Query
from lipverify.propagation import Bounds, bounds
from lipverify.robustness.attack import Box
from lipverify.robustness.branching import branched_margin
from lipverify.robustness.optimised import Slopes
from lipverify.robustness.shells import Shell
from lipverify.rules import interval


def refuses_ranges(graph: Graph) -> str | None:
    """Why linear bounds cannot be computed, naming the nodes; None if they can."""
    missing = interval.missing(node for node in graph.nodes if not isinstance(node.op, Input))
    return f"no interval rule for {', '.join(node.describe() for node in missing[:3])}" if missing else None


def refuses_gradients(graph: Graph, norm: Norm) -> str | None:
    """Why local constants cannot be computed, naming the nodes; None if they can."""
    somewhere = Ball(torch.zeros(1, *graph.input_shape), 1.0, norm)
    return Local().reject(graph, Query(norm, norm, somewhere))


@dataclass(frozen=True)
class Balls:
    """Balls around one point, for a network whose outputs are the logit differences."""

    graph: Graph
    x: Tensor
    norm: Norm
    box: Box | None
    margins: bool
    constants: bool
    compute: Compute
    slopes: Slopes | None = None
    """Search for lower planes; None: none."""
    leaves: int = 0
    """Parts of a ball that branch and bound may look at, for each output."""

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return self.compute.device

    def look_harder(self, radius: float) -> Shell:
        """As `look`, with branch and bound on the margins that are not shown to be positive, and without constants."""
        ball = Ball(self.x[None], radius, self.norm, self.box)
        slopes = self.slopes or Slopes()
        with torch.no_grad():
            try:
                ranges = bounds(self.graph, ball, device=self.device)
            except UnsupportedModel:
                return Shell(radius)
        margins = slopes.margins(ranges, self.compute)
        for j in margins.argsort().tolist():
            if margins[j] > 0:
                break
            start = {name: values[j] for name, values in slopes.values.items()}
            found = branched_margin(ranges, j, start, self.leaves, self.compute)
            margins[j] = max(float(margins[j]), found)
            if not margins[j] > 0:
                break
        return Shell(radius, None, None, _finite(margins.cpu(), low=True), branched=True)

    def look(self, radius: float) -> Shell:
        """Margins and constants over the ball; None for what is not asked or not bounded there."""
        ball = Ball(self.x[None], radius, self.norm, self.box)
        with torch.no_grad():
            plain = self.graph
            written = elementary(plain) if self.constants else plain
            try:
                ranges = bounds(plain, ball, device=self.device)
                finer = ranges if written is plain or len(written.nodes) == len(plain.nodes) else None
            except UnsupportedModel:
                return Shell(radius)
            margins = ranges.output.lower.flatten().cpu() if self.margins else None
            optimised = None
            if self.slopes is not None:
                optimised = self.slopes.margins(ranges, self.compute).cpu()
            constants = self._constants(written, ball, ranges, finer) if self.constants else None
        return Shell(
            radius, _finite(margins, low=True), _finite(constants, low=False), _finite(optimised, low=True)
        )

    def _constants(self, written: Graph, ball: Ball, plain: Bounds, finer: Bounds | None) -> Tensor | None:
        """Dual norms of the gradients of all differences: [rivals]."""
        try:
            ranges = finer or bounds(written, ball, device=self.device, within=plain)
            graph = ranges.known.graph
            factors = derivative_ranges(graph, ranges)
        except UnsupportedModel:
            return None
        size = graph.output.size
        seeds = torch.eye(size, dtype=torch.float64, device=self.device).reshape(size, *graph.output_shape)
        tier = Tier(lines=slope_lines(graph, ranges.known), known=ranges.known)
        jacobian = jacobian_ranges(graph, factors, seeds, 1, tier)
        return row_norms(jacobian, self.norm.dual, tier)[0].cpu()


def _finite(values: Tensor | None, low: bool) -> Tensor | None:
    """Bounds that overflowed say nothing: -infinity below is kept, an infinite constant is not."""
    if values is None or bool(values.isnan().any()):
        return None
    if low:
        return values
    return values if bool(values.isfinite().all()) else None
