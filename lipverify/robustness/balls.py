"""One look at a ball: linear bounds of all logit differences, and constants of the differences over it from the same ranges."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lipverify.analyzers.lengths import with_units
from lipverify.analyzers.lipsdp.canonical import layers_of_neurons
from lipverify.analyzers.lipsdp.solver import Solution
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.local.comparators import elementary
from lipverify.analyzers.local.coupled import slope_lines
from lipverify.analyzers.local.gradients import derivative_ranges
from lipverify.analyzers.local.jacobian import Tier, jacobian_ranges, row_norms
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.propagation import Bounds, bounds
from lipverify.propagation.forms import mixes
from lipverify.robustness.attack import Box
from lipverify.robustness.branching import FIRST_STEPS, Forest, begun, hint, proved_on
from lipverify.robustness.carried import Multipliers, whole_layers
from lipverify.robustness.domains import Neurons, Search
from lipverify.robustness.semidefinite import ball_constants
from lipverify.robustness.shells import Shell

SEARCHES = 2
"""Semidefinite searches on one ball: the most critical rival, and the one that is it then."""
CHEAP = 1e7
"""Gradients by linear functionals are an addition to semidefinite constants where they take at most about so many numbers."""


def refuses_gradients(graph: Graph, norm: Norm) -> str | None:
    """Why local constants cannot be computed, naming the nodes; None if they can."""
    somewhere = Ball(torch.zeros(1, *graph.input_shape), 1.0, norm)
    return Local().reject(graph, Query(norm, norm, somewhere))


def gradient_work(graph: Graph) -> float:
    """Numbers that linear functionals of gradients take on one ball at most: (unknown slopes) * (size) for each output."""
    size = sum(node.size for node in graph.nodes)
    return float(graph.output.size * size * size)


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
    planes: bool = False
    """Whether lower planes of ReLU are searched for."""
    leaves: int | None = None
    """Parts of a ball that branch and bound may look at; None: as many as time lasts for."""
    semidefinite: bool = False
    """Whether LipSDP covers the network, for `steepen`."""
    seen: dict[float, Bounds] = field(default_factory=dict)
    """Ranges of the balls looked at; those of a ball hold on every smaller one."""
    steep: dict[float, Tensor] = field(default_factory=dict)
    """Constants of the balls steepened so far, by radius; gradients at the point for radius 0."""
    roots: Forest = field(default_factory=dict)
    """Planes of the ball looked at last, where the next search starts."""
    trees: dict[float, Forest] = field(default_factory=dict)
    """By radius what shows all margins to be positive there, beyond ranges alone."""
    multipliers: dict[tuple[float | None, int], Multipliers] = field(default_factory=dict)
    """By ball and rival what proves a constant, where it is no range of derivatives: of every neuron of every layer."""

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return self.compute.device

    @cached_property
    def written(self) -> Graph | None:
        """The graph with maxima written as ReLUs and vectors over their length as one node; names stay. None without any.

        Planes of a maximum know the ranges of its arguments, planes of a ReLU that of their difference: often far tighter.
        """
        found = elementary(with_units(self.graph))
        return None if found.nodes == self.graph.nodes else found

    def ranges(self, radius: float) -> Bounds:
        """Ranges of all nodes over the ball, inside those of the next larger ball that was looked at.

        Raises:
            UnsupportedModel: an operator is not bounded there.
        """
        if radius not in self.seen:
            larger = min((r for r in self.seen if r > radius), default=None)
            within = {} if larger is None else dict(self.seen[larger])
            ball = Ball(self.x[None], radius, self.norm, self.box)
            if mixes(self.graph):
                # Forms and linear bounds in turn are tighter than what a larger ball knows.
                self.seen[radius] = bounds(self.written or self.graph, ball, device=self.device)
                return self.seen[radius]
            found = bounds(self.graph, ball, device=self.device, within=within or None)
            if self.written is not None:
                found = bounds(self.written, ball, device=self.device, within={**within, **found})
            self.seen[radius] = found
        return self.seen[radius]

    def steepen(self, radius: float, known: Tensor, margin: Tensor) -> Tensor | None:
        """Constants of the differences over the ball, never above `known`: [rivals]. l2 only; None where there are none."""
        with torch.no_grad():
            try:
                ranges = self.ranges(radius)
            except UnsupportedModel:
                return None
            best = known
            if not self.semidefinite or gradient_work(self.graph) <= CHEAP:
                found = _finite(self._constants(ranges), low=False)
                best = best if found is None else torch.minimum(best, found)
            if self.semidefinite:
                kept: dict[int, Solution] = {}
                found = ball_constants(
                    self.graph,
                    ranges,
                    best.clone(),
                    margin,
                    self._expected(radius),
                    SEARCHES,
                    self.compute,
                    kept,
                )
                best = best if found is None else found
                self._keep(radius, ranges, kept)
        if not bool(best.isfinite().all()):
            return None
        self.steep[radius] = best
        return best

    def _keep(self, radius: float, ranges: Bounds, kept: dict[int, Solution]) -> None:
        """The multipliers in whole layers: which neurons have any follows from these ranges alone."""
        if not kept:
            return
        layers = layers_of_neurons(self.graph, ranges)
        for solution in {id(s): s for s in kept.values()}.values():
            whole = whole_layers(layers, solution.multipliers, solution.exponents)
            self.multipliers.update({(radius, rival): whole for rival, s in kept.items() if s is solution})

    def _expected(self, radius: float) -> Tensor:
        """Constants of the largest smaller ball, or lengths of the gradients at the point: below those of this ball."""
        if not self.steep:
            exact = self.graph.to(dtype=torch.float64)
            jacobian = torch.func.jacrev(lambda x: evaluate(exact, x[None])[0])(self.x.double())
            self.steep[0.0] = torch.linalg.vector_norm(jacobian.flatten(1), dim=1)
        return self.steep[max(r for r in self.steep if r < radius)]

    def prove(self, radius: float, deadline: float) -> bool:
        """Whether branch and bound shows all margins on the ball to be positive, from the trees of the ball before.

        Args:
            deadline: the moment at which it gives up.
        """
        with torch.no_grad():
            try:
                ranges = self.ranges(radius)
            except UnsupportedModel:
                return False
        neurons, low = Neurons.of(ranges.known), ranges.output.lower.flatten()
        outputs = (~(low > 0)).nonzero().flatten().tolist()
        start = self.trees[max(self.trees)] if self.trees else self.roots
        found = proved_on(neurons, outputs, start, lambda: time.monotonic() > deadline, self.leaves)
        if found is None:
            return False
        self.trees[radius] = found
        return True

    def _searched(self, ranges: Bounds, radius: float) -> Tensor:
        """Margins with searched planes, never below those of the ranges: [rivals]. Stops as soon as all are positive."""
        best = ranges.output.lower.flatten().clone()
        neurons = Neurons.of(ranges.known)
        if not len(neurons.open):
            return best
        outputs = list(range(len(best)))
        rows, _ = begun(neurons, outputs, self.roots)
        search = Search(neurons)
        rows, _ = search.searched(rows, FIRST_STEPS, lambda: self.compute.remaining() <= 0)
        best = torch.maximum(best, search.lower(rows))
        self.roots.update({j: {(): hint(neurons, rows, j)} for j in outputs})
        if bool((best > 0).all()):
            self.trees[radius] = dict(self.roots)
        return best

    def look(self, radius: float) -> Shell:
        """Margins and constants over the ball; None for what is not asked or not bounded there."""
        with torch.no_grad():
            try:
                ranges = self.ranges(radius)
            except UnsupportedModel:
                return Shell(radius)
            margins = ranges.output.lower.flatten().cpu() if self.margins else None
            optimised = None
            if self.planes:
                optimised = self._searched(ranges, radius).cpu()
            constants = self._constants(ranges) if self.constants else None
        return Shell(
            radius, _finite(margins, low=True), _finite(constants, low=False), _finite(optimised, low=True)
        )

    def _constants(self, ranges: Bounds) -> Tensor | None:
        """Dual norms of the gradients of all differences: [rivals]."""
        if ranges.forms is not None:
            return ranges.forms.rows[0].cpu()
        graph = ranges.known.graph
        try:
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
