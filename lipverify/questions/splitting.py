"""Facts over boxes of few inputs, refined by cutting the boxes: the worst parts first, across the input that moves most.

Legend: a part is a box [*input shape] inside one region; a region's range is the hull of those of its parts, which cover it.
Sound when: as `lipverify.bounds` within a box of inputs; which parts are cut, and where, may be chosen freely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.propagation import bounds

MOST_INPUTS = 12
"""Inputs up to which cutting them helps."""
DIRECTIONS = 8
"""Outputs, or random sums of them, whose gradients say which input moves most."""


@dataclass(frozen=True)
class Splitting:
    """batch: parts cut at once; parts: in all, with a budget and without one."""

    batch: int = 64
    parts: int = 200_000
    parts_without_budget: int = 512


@dataclass
class _Parts:
    """lower, upper [n, *input shape]; region [n]; facts: ranges [n, entries] of the output over each part."""

    lower: Tensor
    upper: Tensor
    region: Tensor
    facts: Interval

    def take(self, rows: Tensor) -> _Parts:
        facts = Interval(self.facts.lower[rows], self.facts.upper[rows])
        return _Parts(self.lower[rows], self.upper[rows], self.region[rows], facts)

    def joined(self, other: _Parts) -> _Parts:
        ends = ((getattr(self.facts, side), getattr(other.facts, side)) for side in ("lower", "upper"))
        return _Parts(
            torch.cat([self.lower, other.lower]),
            torch.cat([self.upper, other.upper]),
            torch.cat([self.region, other.region]),
            Interval(*(torch.cat(pair) for pair in ends)),
        )

    def hull(self, count: int) -> Interval:
        """The ranges of the regions: [count, entries]."""
        size = self.facts.lower.shape[1]
        index = self.region[:, None].expand(-1, size)
        low = torch.full((count, size), torch.inf, dtype=torch.float64)
        high = torch.full((count, size), -torch.inf, dtype=torch.float64)
        return Interval(
            low.scatter_reduce(0, index, self.facts.lower, "amin"),
            high.scatter_reduce(0, index, self.facts.upper, "amax"),
        )


def refined(
    graph: Graph,
    region: Ball,
    first: Interval,
    value: Callable[[Interval], Tensor],
    compute: Compute,
    settings: Splitting | None = None,
) -> Iterator[Interval]:
    """Ranges [count, entries] of the flat output over each region, each inside the one before. None where regions are no boxes.

    Args:
        first: ranges to begin with. value: of ranges [n, entries], what is to become small: [n].
    """
    if region.norm is not Norm.LINF or graph.input.size > MOST_INPUTS or region.radius == 0.0:
        return
    settings = settings or Splitting()
    most = settings.parts_without_budget if compute.deadline is None else settings.parts
    box = region.enclosure()
    tree = _Parts(box.lower, box.upper, torch.arange(len(region)), first)
    while len(tree.lower) < most and not compute.expired():
        worst = value(tree.facts).argsort(descending=True)
        some, rest = tree.take(worst[: settings.batch]), tree.take(worst[settings.batch :])
        halves = _halves(graph, some)
        if halves is None:
            return
        tree = rest.joined(_bounded(graph, halves, compute))
        yield tree.hull(len(region))


def _halves(graph: Graph, parts: _Parts) -> _Parts | None:
    """Each part cut across the input whose width moves the outputs most; None where one cannot be cut any more."""
    center = (parts.lower / 2 + parts.upper / 2).requires_grad_(True)
    with torch.enable_grad():
        y = evaluate(graph.to(dtype=torch.float64), center).flatten(1)
        size = y.shape[1]
        signs = torch.eye(size, dtype=torch.float64)
        if size > DIRECTIONS:
            rng = torch.Generator().manual_seed(0)
            signs = torch.randn(DIRECTIONS, size, generator=rng, dtype=torch.float64)
        steep = torch.zeros_like(center)
        for row in signs:
            (found,) = torch.autograd.grad((y * row).sum(), center, retain_graph=True, materialize_grads=True)
            steep = steep + found.abs()
    width = (parts.upper - parts.lower).flatten(1)
    # A little for the width alone, so that every input has its turn.
    score = width * steep.detach().flatten(1)
    score = score / score.amax(1, keepdim=True).clamp_min(1e-300) + 0.05 * width / width.amax(1, keepdim=True)
    axis = score.argmax(1, keepdim=True)
    lower, upper = parts.lower.flatten(1), parts.upper.flatten(1)
    low, high = lower.gather(1, axis), upper.gather(1, axis)
    middle = low + (high - low) / 2
    if not bool(((low < middle) & (middle < high)).all()):
        return None
    shape, twice = parts.lower.shape[1:], torch.arange(len(width)).repeat(2)
    both = parts.take(twice)
    ends = (
        torch.cat([lower, lower.scatter(1, axis, middle)]),
        torch.cat([upper.scatter(1, axis, middle), upper]),
    )
    return _Parts(ends[0].reshape(-1, *shape), ends[1].reshape(-1, *shape), both.region, both.facts)


def _bounded(graph: Graph, parts: _Parts, compute: Compute) -> _Parts:
    """The parts with ranges of their own, inside those of what they were cut from."""
    center = torch.minimum(torch.maximum(parts.lower / 2 + parts.upper / 2, parts.lower), parts.upper)
    reach = torch.maximum(parts.upper - center, center - parts.lower).max()
    ball = Ball(center, float(torch.nextafter(reach, reach.new_tensor(torch.inf))), Norm.LINF)
    ends = Interval(parts.lower.to(compute.device), parts.upper.to(compute.device))
    found = bounds(
        graph, ball, within={graph.input.name: ends}, device=compute.device, expired=compute.expired
    )
    lower, upper = found.output.lower.cpu().flatten(1), found.output.upper.cpu().flatten(1)
    facts = Interval(torch.maximum(lower, parts.facts.lower), torch.minimum(upper, parts.facts.upper))
    return _Parts(parts.lower, parts.upper, parts.region, facts)
