"""Branch and bound over parts of one ball: bounds of Jacobian norms on leaves, the largest leaf first.

Source: Bunel et al., JMLR 21 (2020) for the scheme; Shi et al., NeurIPS 2022 (arXiv 2210.07394) for splits of activations in
bounds of Clarke Jacobians. Here the ranges of every leaf are propagated again.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.canonical import canonical_form
from lipverify.analyzers.lipsdp.norms import answer
from lipverify.analyzers.lipsdp.solver import Settings
from lipverify.analyzers.lipsdp.system import one_output
from lipverify.analyzers.local.analyzer import MEMORY, NormBounds, norm_bounds, tier_of
from lipverify.analyzers.local.emptiness import proofs_of_emptiness
from lipverify.analyzers.local.frontier import Frontier, Group, Leaf
from lipverify.analyzers.local.gradients import derivative_ranges
from lipverify.analyzers.local.parts import (
    KINKED,
    Split,
    Splits,
    away_from_kinks,
    children,
    parallel_values,
    splittable,
    threshold,
    within,
)
from lipverify.analyzers.local.reach import reach
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.memory import share
from lipverify.propagation import Bounds, bounds

FEW_INPUTS = 4
"""Inputs up to which the box itself is halved while many slopes are unknown."""
MANY_UNKNOWN = 8
IMPROVED = 0.98
"""A leaf whose bound by linear functionals fell less than this from its parent's gets a semidefinite bound too."""
SDP_NEURONS = 400
STEP_SHARE = 0.25
"""Of the time left, what one step may take: times are guesses on a busy machine."""
SDP_SETTINGS = Settings(tol=3e-2, restart=False)


@dataclass(frozen=True)
class Limits:
    """leaves: parts bounded for each centre; batch: at once; sdp: semidefinite bounds where linear ones do not improve."""

    leaves: int
    batch: int
    sdp: bool


class Tree:
    """The search over the parts of one ball; the bound of its leaves is valid at every moment."""

    def __init__(
        self,
        graph: Graph,
        ball: Ball,
        inside: Bounds | None,
        query: Query,
        limits: Limits,
        device: torch.device,
        pace: float = 0.0,
    ) -> None:
        """graph: with comparators written out, float64; inside: ranges known for some of its nodes; pace: seconds that linear
        bounds of the whole ball take.
        """
        self.graph, self.ball, self.query, self.limits = graph, ball, query, limits
        self.inside = inside
        self.twins = parallel_values(graph)
        self.targets = splittable(graph)
        self.count = 0
        self.device = device
        self.pace, self.semidefinite_pace = pace, 0.0
        self.interrupted = False

    def start(self, whole: float, rows: Tensor, single: bool) -> None:
        """Roots with bounds known already: one for each row where only the largest row counts, or one for all."""
        groups = [(k, k + 1) for k in range(len(rows))] if single else [(0, len(rows))]
        uppers = [min(whole, float(rows[group[0]])) if single else whole for group in groups]
        self.frontier = Frontier(
            [Leaf((), group, upper, "root", 0) for group, upper in zip(groups, uppers, strict=True)]
        )

    @property
    def upper(self) -> float:
        """The bound that all leaves together prove."""
        return self.frontier.upper

    def grow(self, compute: Compute) -> None:
        """Splits the worst leaves until nothing is left to split, or the limit or the deadline is reached.

        A step that is not likely to end before the deadline is not begun; near it steps are smaller.
        """
        if compute.remaining() <= self.pace:
            return
        begun = time.monotonic()
        self._settle_roots()
        self.pace = time.monotonic() - begun
        while self.count < self.limits.leaves and not self.interrupted:
            chosen = self.frontier.worst(min(self.limits.batch // 2, self._room(compute)))
            if not chosen:
                return
            begun = time.monotonic()
            found = self._divide(chosen, chosen[0].outputs, compute)
            self.pace = (time.monotonic() - begun) / len(found)
            self.frontier.exchange(chosen, found)
            compute.report(f"local-bab {self.count} parts", self.upper)

    def _room(self, compute: Compute) -> int:
        """How many leaves may be split in one step: a part of what the time left is enough for, at the pace of the last step."""
        left = compute.remaining()
        if math.isinf(left):
            return self.limits.leaves
        if left <= 2.0 * self.pace:
            return 0
        return max(1, int(STEP_SHARE * left / (2.0 * self.pace))) if self.pace > 0.0 else self.limits.leaves

    def _settle_roots(self) -> None:
        """What each root splits first; their rows are bounded together."""
        roots = self.frontier.leaves()
        ranges = self._ranges([()])
        per_row = 8 * 8 * sum(node.size for node in self.graph.nodes)
        _, factors, found = self._linear_bounds(ranges, slice(None), max(1, share(MEMORY) // per_row))
        settled = []
        for leaf in roots:
            first, last = leaf.outputs
            upper, seen = leaf.upper, found
            if last - first < found.rows.shape[1]:
                upper, seen = float(found.rows[0, first:last].amax()), found.of_rows(first, last)
            else:
                upper = float(found.upper[0])
            follow = self._next(ranges, factors, seen, [()])[0]
            self.count += 1
            if upper < leaf.upper:
                leaf = replace(leaf, upper=upper, by="chord")
            settled.append(replace(leaf, next=follow))
        self.frontier.exchange(roots, settled)

    def _linear_bounds(
        self, ranges: Bounds, outputs: slice, chunk: int
    ) -> tuple[dict[str, Interval], dict[str, tuple[Interval, ...]], NormBounds]:
        """Ranges away from kinks, those of the derivatives, and bounds of these rows of the Jacobian, on every part."""
        moved = away_from_kinks(self.graph, dict(ranges))
        factors = derivative_ranges(self.graph, moved)
        tier = replace(tier_of(self.graph, ranges), middle=False)
        found = norm_bounds(self.graph, ranges, self.query, tier, chunk, factors=factors, outputs=outputs)
        return moved, factors, found

    def _divide(self, parents: list[Leaf], group: tuple[int, int], compute: Compute) -> list[Leaf]:
        above, parts = [], []
        for leaf in parents:
            assert leaf.next is not None
            for part in children(leaf.splits, leaf.next, self.twins):
                above.append(leaf)
                parts.append(part)
        return self._bounded(above, parts, group, compute)

    def _bounded(
        self, parents: list[Leaf], parts: list[Splits], group: Group, compute: Compute
    ) -> list[Leaf]:
        """Leaves with bounds never above their parents'."""
        ranges = self._ranges(parts)
        empty = ranges.empty.tolist()
        proofs = proofs_of_emptiness(
            ranges.known, [() if gone else p for gone, p in zip(empty, parts, strict=True)]
        )
        moved, factors, found = self._linear_bounds(ranges, slice(*group), self.graph.output.size)
        self.count += len(parts)
        following = self._next(ranges, factors, found, parts)
        leaves = []
        for row, (parent, splits) in enumerate(zip(parents, parts, strict=True)):
            leaf = replace(parent, splits=splits, next=following[row])
            if empty[row] or proofs[row] is not None:
                leaf = replace(leaf, upper=0.0, by="empty", depth=len(splits), next=None)
                leaves.append(replace(leaf, weights=proofs[row], proof=None))
                continue
            value = float(found.upper[row])
            if value < leaf.upper:
                leaf = replace(leaf, upper=value, by="chord", depth=len(splits), proof=None)
            if leaf.next is not None and value > IMPROVED * parent.upper:
                leaf = self._semidefinite(leaf, moved, row, compute)
            leaves.append(leaf)
        return leaves

    def _ranges(self, parts: list[Splits]) -> Bounds:
        count = len(parts)
        ball = self.ball.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))
        wanted = within(self.graph, parts, self.device)
        if self.inside is not None:
            for name, box in self.inside.items():
                wide = Interval(*(end.expand(count, *end.shape[1:]) for end in (box.lower, box.upper)))
                half = wanted.get(name)
                wanted[name] = wide if half is None else _met(wide, half)
        return bounds(self.graph, ball, device=self.device, within=wanted)

    def _semidefinite(self, leaf: Leaf, ranges: dict[str, Interval], row: int, compute: Compute) -> Leaf:
        if not self.limits.sdp or self.interrupted or compute.remaining() <= self.semidefinite_pace:
            return leaf
        begun = time.monotonic()
        boxes = {name: Interval(b.lower[row : row + 1], b.upper[row : row + 1]) for name, b in ranges.items()}
        system = canonical_form(self.graph, boxes, self.device)
        if system.neurons + system.inputs > SDP_NEURONS:
            return leaf
        if leaf.outputs[1] - leaf.outputs[0] == 1:
            system = one_output(system, leaf.outputs[0])
        try:
            found = answer(system, self.query.norm_in, self.query.norm_out, compute, SDP_SETTINGS)
        except UnsupportedModel:
            return leaf
        # Its search ends with Ctrl-C and has a bound then.
        self.interrupted |= found.interrupted
        self.semidefinite_pace = time.monotonic() - begun
        if found.upper is None or not found.upper < leaf.upper:
            return leaf
        proof = found.proofs[0] if len(found.proofs) == 1 else None
        return replace(leaf, upper=found.upper, by="sdp", depth=len(leaf.splits), proof=proof)

    def _next(
        self,
        ranges: Bounds,
        factors: dict[str, tuple[Interval, ...]],
        found: NormBounds,
        parts: list[Splits],
    ) -> list[Split | None]:
        """For each leaf the split that promises most: width of the slope times gradient times what it reaches."""
        far = self._reach(ranges, factors)
        scores, places, unknown = [], [], torch.zeros(len(parts), dtype=torch.int64, device=self.device)
        for node in self.targets:
            factor = factors[node.name][0]
            width = (factor.upper - factor.lower).flatten(1)
            unknown += (width > 0).sum(1)
            largest = torch.stack([g.largest(node.name).amax(1).flatten(1) for g in found.gradients]).amax(0)
            scores.append(width * largest * far[node.name])
            places.append(node)
        follow: list[Split | None] = []
        for row in range(len(parts)):
            inputs = self._input_split(ranges, found, row)
            few = self.graph.input.size <= FEW_INPUTS and (
                int(unknown[row]) > MANY_UNKNOWN
                or any(
                    bool((s[row] > 0).any()) and not isinstance(n.op, KINKED)
                    for s, n in zip(scores, places, strict=True)
                )
            )
            follow.append(
                inputs if few and inputs is not None else self._activation_split(ranges, scores, row)
            )
        return follow

    def _reach(self, ranges: Bounds, factors: dict[str, tuple[Interval, ...]]) -> dict[str, Tensor]:
        if not hasattr(self, "_far"):
            middle = {
                name: tuple(p.lower[0] / 2 + p.upper[0] / 2 for p in parts) for name, parts in factors.items()
            }
            self._far = reach(self.graph, middle, self.query.norm_in.dual, self.device)
        return self._far

    def _activation_split(self, ranges: Bounds, scores: list[Tensor], row: int) -> Split | None:
        best: tuple[float, Split] | None = None
        for node, score in zip(self.targets, scores, strict=True):
            if not score.shape[1]:
                continue
            order = score[row].topk(min(4, score.shape[1]))
            for value, entry in zip(order.values.tolist(), order.indices.tolist(), strict=True):
                if value <= 0.0 or (best is not None and value <= best[0]):
                    break
                box = ranges[node.inputs[0]]
                ends = float(box.lower[row].flatten()[entry]), float(box.upper[row].flatten()[entry])
                at = threshold(node.op, *ends)
                if at is not None:
                    best = value, Split(node.inputs[0], int(entry), at, True)
                    break
        return None if best is None else best[1]

    def _input_split(self, ranges: Bounds, found: NormBounds, row: int) -> Split | None:
        name = self.graph.input.name
        box = ranges[name]
        width = (box.upper[row] - box.lower[row]).flatten()
        largest = torch.stack([g.largest(name)[row].amax(0).flatten() for g in found.gradients]).amax(0)
        entry = int((width * largest).argmax())
        low, high = float(box.lower[row].flatten()[entry]), float(box.upper[row].flatten()[entry])
        middle = low / 2 + high / 2
        return Split(name, entry, middle, True) if low < middle < high else None


def _met(first: Interval, second: Interval) -> Interval:
    """The intersection; where there is none, the first: `bounds` finds out that the part is empty."""
    lower, upper = torch.maximum(first.lower, second.lower), torch.minimum(first.upper, second.upper)
    apart = lower > upper
    return Interval(torch.where(apart, first.lower, lower), torch.where(apart, first.upper, upper))


def single_rows(query: Query) -> bool:
    """Whether only the largest row counts, so that each row can have a tree of its own."""
    return query.norm_out is Norm.LINF
